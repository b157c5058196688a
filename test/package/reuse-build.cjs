#!/usr/bin/env node
// Stands in for node-gyp when the tarball test runs prebuildify: instead of compiling once more, it puts the repository's
// addon where a build in the current folder would have left it.
"use strict";

const { copyFileSync, mkdirSync } = require("node:fs");
const { join, resolve } = require("node:path");

const built = resolve(__dirname, "..", "..", "build", "Release", "rlhf.node");
const release = join(process.cwd(), "build", "Release");
mkdirSync(release, { recursive: true });
copyFileSync(built, join(release, "rlhf.node"));
