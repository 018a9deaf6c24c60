"""The Python interface: what `import nanogpt` offers to notebooks and scripts. docs/python.md describes it."""
