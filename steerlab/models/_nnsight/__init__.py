"""All code that imports nnsight: traces, and the engines that run them in this process, on NDIF servers and in vLLM."""
