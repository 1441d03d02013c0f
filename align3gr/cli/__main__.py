"""`python -m align3gr.cli`."""

from align3gr.cli import main

main()
