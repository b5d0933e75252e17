"""Every setting with its default and limits, one file for each topic; `load` reads them from YAML."""
