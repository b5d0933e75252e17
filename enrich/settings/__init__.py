"""Every setting, its default and its limits, one file a topic; `load` reads them from YAML."""
