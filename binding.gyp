{
  "targets": [
    {
      "target_name": "rlhf",
      "type": "none",
      "actions": [
        {
          "action_name": "cmake_js",
          "inputs": ["CMakeLists.txt", "scripts/build-native.cjs"],
          "outputs": ["<(PRODUCT_DIR)/rlhf.node"],
          "action": ["node", "scripts/build-native.cjs"]
        }
      ]
    }
  ]
}
