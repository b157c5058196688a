#!/usr/bin/env node
// Stands in for node-gyp under prebuildify, which runs it as `node-gyp rebuild --target=… --arch=…`. Those arguments
// concern Node's headers; a Node-API addon built with cmake-js needs none, so neither Python, make nor a download is used.
"use strict";

const { rmSync } = require("node:fs");
const { join } = require("node:path");
const { buildNative } = require("./build-native.cjs");

// prebuildify ships whatever build/Release holds, so nothing from an earlier build may be left in it.
rmSync(join(__dirname, "..", "build", "Release"), { recursive: true, force: true });
buildNative({ cuda: process.env.RLHF_CUDA === "ON" });
