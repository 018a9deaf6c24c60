"""Start and end of a training loop, and the record of how it ended."""

from nanogpt.errors import STOPPED, Diverged
from nanogpt.training.loop import Loop
from nanogpt.training.state import warm_up_ddp_buckets
from nanogpt.training.summary import print_results, print_stop_message


def run_loop(loop: Loop) -> int:
    """Run the training loop and report how it ended."""
    failed = ""
    try:
        start_loop(loop)
        finished = loop.run()
    except Exception as error:
        failed = record_error(loop, error)
        raise
    finally:
        close_loop(loop, failed)
    return report_end(loop, finished)


def start_loop(loop: Loop) -> None:
    """Prepare the first step."""
    if loop.config.tracking.required:
        loop.state.group.broadcast_from_rank0(lambda: loop.logger.wait_for_trackers() if loop.logger else None)
    warm_up_ddp_buckets(loop.state, loop.batches.read_batch(loop.batches.first_samples(loop.state.samples)[0]))


def record_error(loop: Loop, error: Exception) -> str:
    """Record in status.json and log.txt what ended the loop. Returns the state of the run."""
    failed = "diverged" if isinstance(error, Diverged) else "failed"
    if loop.logger:
        loop.logger.write_status(failed)
        loop.logger.log(f"{type(error).__name__}: {error}")
    return failed


def close_loop(loop: Loop, failed: str = "") -> None:
    """End watchdog, checkpoint writer and progress bar; with the state `failed` after an error also the trackers."""
    loop.watchdog.stop()
    if record := loop.logger:
        record.checkpointer.close()
        record.progress.close()
        if failed:
            record.finish_trackers(loop.stop_flag, failed)


def report_end(loop: Loop, finished: bool) -> int:
    """Record and print how a loop without an error ended. Returns the exit code."""
    state = loop.state
    if record := loop.logger:
        outcome = "stopped" if not finished else "finished" if state.step == state.total_steps else "paused"
        record.write_status(outcome)
        if outcome == "finished":
            print_results(loop.config, state, record.run)
        else:
            print_stop_message(loop.config, record, loop.stop_flag, loop.stop_request)
        record.finish_trackers(loop.stop_flag, outcome)
    return 0 if finished else STOPPED
