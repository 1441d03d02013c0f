"""What is worth measuring on one GPU, part by part; started by `benchmarks/gpu.sh`, explained in docs/gpu.md."""
