"""What is done about the memory of a process that runs for weeks."""

import gc


def settle_memory() -> None:
    """To be called when all that stays has been made: half a million objects, most of them the libraries'.

    The garbage collector would look through them all in every full collection, while all streams stand still, and would
    put full collections off until a quarter as many new objects are there, among them tensors that turns left behind.
    """
    gc.collect()
    gc.freeze()
    gc.collect()  # counts what is left: the next full collection waits for a quarter of that
