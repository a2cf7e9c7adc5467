// SPDX-License-Identifier: Apache-2.0
// Module of the page: registers the two components.
import "./answers.js";
import "./player.js";
