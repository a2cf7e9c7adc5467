# SPDX-License-Identifier: Apache-2.0
"""`llava-st train` and `llava-st recipes`: the training program, recipes and accelerate configurations of the installed package."""

import os
import shutil
import sys
from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path


LAUNCH = Path(find_spec("llava_st_hf").origin).parent / "launch"  # type: ignore[union-attr, arg-type]  # found without an import of torch
#: What `llava-st recipes` lists: heading → folder.
FOLDERS = {"recipes": LAUNCH / "recipes", "accelerate configurations": LAUNCH / "accelerate"}


def run_train(args: Namespace) -> None:
    """Replaces this process by the training program of a recipe, on one or several processes."""
    command, environment = training_command(args)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(command[0], command, environment)


def training_command(args: Namespace) -> tuple[list[str], dict[str, str]]:
    """
    Returns command line and environment of a training.

    Args:
        args: of `llava-st train`; `args.overrides` are the arguments that replace values of the recipe.

    Raises:
        ValueError, OSError: naming the recipe, configuration or mixture that is missing or damaged.
    """
    recipe = find_file(args.recipe, FOLDERS["recipes"], "recipe")
    settings = {**_read(recipe), **_overrides(args.overrides)}
    for name in ("mixture", "eval_mixture"):
        if settings.get(name) is not None and not os.path.isfile(str(settings[name])):
            raise FileNotFoundError(f"{name}={settings[name]} is not a file. Set it in the recipe, or by --{name} FILE.")
    program = ["-m", f"llava_st_hf.launch.{'grpo' if 'grpo' in recipe.stem else 'sft'}", "--config", str(recipe), *args.overrides]
    if settings.get("use_cpu") and (args.num_processes or 1) > 1:
        if args.accelerate is not None:
            raise ValueError(f"--accelerate {args.accelerate} has no effect on several CPU processes (use_cpu: true).")
        return _cpu_processes(args, program)
    several = (args.num_processes or 1) > 1
    config = find_file(args.accelerate or ("ddp" if several else "single_gpu"), FOLDERS["accelerate configurations"], "configuration")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), "--mixed_precision", _precision(settings)]
    if settings.get("use_cpu"):
        launch.append("--cpu")
    for name in ("num_processes", "num_machines", "machine_rank", "main_process_ip", "main_process_port"):
        if (value := getattr(args, name)) is not None:
            launch += [f"--{name}", str(value)]
    return [*launch, *program], dict(os.environ)


def _cpu_processes(args: Namespace, program: list[str]) -> tuple[list[str], dict[str, str]]:
    """Returns the command of several processes on CPUs, which accelerate starts through MPI only."""
    machines = args.num_machines or 1
    each, rest = divmod(args.num_processes, machines)
    if rest:
        raise ValueError(f"--num_processes {args.num_processes} must be a multiple of --num_machines {machines}.")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(each)]
    if machines == 1:
        launch.append("--standalone")
    else:
        if args.main_process_ip is None:
            raise ValueError("--num_machines needs --main_process_ip, the address of the machine with --machine_rank 0.")
        launch += ["--nnodes", str(machines), "--node_rank", str(args.machine_rank or 0)]
        launch += ["--master_addr", args.main_process_ip, "--master_port", str(args.main_process_port or 29500)]
    threads = max(1, len(os.sched_getaffinity(0)) // each) if hasattr(os, "sched_getaffinity") else 1
    return [*launch, *program], {"OMP_NUM_THREADS": str(threads), **os.environ}


def _precision(settings: dict) -> str:
    """Precision of accelerate's processes, which must be that of the recipe; `bf16` is true by default."""
    return "fp16" if settings.get("fp16") else "no" if settings.get("bf16") is False else "bf16"


def _read(recipe: Path) -> dict:
    import yaml

    try:
        settings = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"The recipe {recipe} is not valid YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"The recipe {recipe} must hold `name: value` lines; it holds {settings!r:.100}.")
    return settings


def _overrides(arguments: list[str]) -> dict:
    """Values given on the command line, as `--name value` or `--name=value`; the training program parses and checks them."""
    import yaml

    values = {}
    for position, argument in enumerate(arguments):
        if argument.startswith("--"):
            following = next(iter(arguments[position + 1 :]), "--")
            name, given, value = argument[2:].partition("=")
            value = value if given else "true" if following.startswith("--") else following
            values[name.replace("-", "_")] = yaml.safe_load(value) if name.replace("-", "_") in ("use_cpu", "bf16", "fp16") else value
    return values


def find_file(name: str, folder: Path, kind: str) -> Path:
    """Returns the path `name` if it is a file, else the file of the package with this name; `.yaml` may be omitted.

    Raises:
        ValueError: listing the names that exist.
    """
    if os.path.isfile(name):
        return Path(name)
    known = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    if os.path.basename(name) == name and (path := known.get(name.removesuffix(".yaml"))):
        return path
    raise ValueError(f"{name} is neither a file nor a {kind} of this package: {', '.join(known)}.")


def run_recipes(args: Namespace) -> None:
    """Lists recipes and accelerate configurations, or copies them to a folder."""
    files = {path.stem: path for folder in FOLDERS.values() for path in sorted(folder.glob("*.yaml"))}
    unknown = [name for name in args.names if name.removesuffix(".yaml") not in files]
    if unknown:
        raise ValueError(f"There is no recipe {', '.join(unknown)}. `llava-st recipes` lists all.")
    chosen = [name.removesuffix(".yaml") for name in args.names] or list(files)
    if args.output is None:
        for heading, folder in FOLDERS.items():
            found = [name for name in chosen if files[name].parent == folder]
            print(*([f"{heading}:"] if found else []), *(f"  {name:30} {_summary(files[name])}" for name in found), sep="\n")
        return
    output = Path(args.output)
    existing = [name for name in chosen if (output / f"{name}.yaml").exists()]
    if existing:
        raise ValueError(f"{output} already has {', '.join(f'{name}.yaml' for name in existing)}, which would be overwritten.")
    output.mkdir(parents=True, exist_ok=True)
    for name in chosen:
        shutil.copyfile(files[name], output / f"{name}.yaml")
        print(output / f"{name}.yaml")


def _summary(path: Path) -> str:
    """First sentence of the comment at the head of a file."""
    comment = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# "))
    return " ".join(comment).split(". ")[0].rstrip(".") + "."
