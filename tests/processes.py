"""New processes that have the heavy imports behind them: one server imports, its forks begin at once."""

import multiprocessing


def forkserver() -> multiprocessing.context.BaseContext:
    """The context to start them from; all tests share one server, so all name the same imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["nerfstudio.scripts.train", "style_nerf2nerf.restyler.restyler", "ns"])
    return context
