"""Inside engines: hooks of vLLM and SGLang translated to calls of the core, nothing else."""
