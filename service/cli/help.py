"""What the commands' help is made of."""


def example(*commands: str) -> str:
    """What ends a command's help; unwrapped, so that it can be copied."""
    return "\b\nExample:\n" + "\n".join(f"  {command}" for command in commands)
