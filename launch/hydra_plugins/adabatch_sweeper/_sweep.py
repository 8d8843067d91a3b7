"""A comparison from its command to its verdict: declared, tuned, run in blocks, controls after sources."""

import logging
import os
import time
from pathlib import Path

from hydra.core.plugins import Plugins
from hydra_plugins.adabatch_sweeper import _compose

from adabatch import jobs, places, published, sweep
from adabatch.compare import declare, told, tuning
from adabatch.compare import jobs as plans
from adabatch.compare.arms import Arm
from adabatch.compare.jobs import BUSY, DONE, LATER, TODO, Job
from adabatch.composed import quoted
from adabatch.errors import UserError
from adabatch.verdict import search
from adabatch.verdict.plan import digest

POLL = 2.0  # seconds between two looks at runs that others have
log = logging.getLogger("adabatch")


def run(sweeper, arguments) -> list:
    """Hydra's call. UserError before the first run where the comparison cannot be had."""
    if (place := places.detect()).world > 1:
        raise UserError(
            f"a comparison is started by one process, got {place.world} (started by {place.kind})"
        )
    jobs.terminal()
    return Comparison(sweeper, list(arguments)).sweep()


class Comparison:
    """A comparison on its way. folder: where its runs are."""

    def __init__(self, sweeper, arguments: list[str]):
        self.hydra = _compose.Composer(sweeper, arguments)
        self.launcher_of = lambda: Plugins.instance().instantiate_launcher(
            hydra_context=sweeper.hydra_context, task_function=sweeper.task_function, config=sweeper.config
        )
        self.config, self.asked = self.hydra.config, self.hydra.asked
        if self.asked.tune_lr and not self.config["dataset"].get("validation"):
            tenth = (self.config["dataset"].get("samples") or 5000) // 10
            raise UserError(
                "compare.tune_lr=true chooses by validation data, and nothing may choose by the test set: "
                f"hold some out, e.g. dataset.validation={tenth}"
            )
        self.arms, self.notes = self.hydra.arms()
        self.samples = next(arm.schedule.budget for arm in self.arms if arm.schedule)
        self.folder = self.hydra.folder()
        self.foreground = self.hydra.launcher().endswith(".BasicLauncher")
        self.waits = self.foreground or bool(self.config.get("wait"))
        self.number, self.over = 0, False  # jobs launched; whether every run has ended
        self.lost = frozenset()  # arms that ran out of memory

    def sweep(self) -> list:
        wanted = declare.content(self.asked, self.arms, self.samples)
        new = declare.settle(self.folder, wanted)
        sweep.accepted |= {"diverged", "out_of_memory"}
        sweep.epilogue.append(self.verdict)
        every = plans.blocks(self.arms, self.asked.seeds, self.asked.order)
        found = (
            tuning.read(self.folder, self.names()) if self.asked.tune_lr else dict.fromkeys(self.names(), 1.0)
        )
        if found:
            self.settle(every, found)
        self.introduce(new, every, found)
        if not found:
            if (found := self.tuned()) is None:
                return []
            self.settle(every, found)
        self.hydra.aim(self.folder)
        self.execute(every)
        self.over = all(due == DONE for _, due in self.standing(every))
        if not self.waits and not self.over:
            log.info("when these have ended, the same command goes on, to the verdict")
        return []

    def names(self) -> list[str]:
        """The arms that are not replayed."""
        return [arm.name for arm in self.arms if arm.source is None]

    def settle(self, every: list[Job], multipliers: dict[str, float]) -> None:
        """The folders of all runs; a control's as far as its source has ended."""
        for job in every:
            if job.arm.source is None:
                job.lines = tuning.lines(job.arm, multipliers[job.arm.name])
                job.folder = self.hydra.place(job, self.folder)
        self.standing(every)

    def introduce(self, new: bool, every: list[Job], multipliers: dict[str, float] | None) -> None:
        """What is compared and what it will cost. multipliers: of learning rates, None before the search."""
        done = sum(plans.finished(job) for job in every)
        search = [arm for arm in self.arms if arm.source is None] if self.asked.tune_lr else []
        count = 0 if every[0].folder else sum(len(tuning.first(arm)) for arm in search)
        lines = [f"comparison in {os.path.relpath(self.folder)}" + ("" if new else " (it goes on)")]
        by = "" if not self.asked.tune_lr else " by the search" if multipliers else " by rule"
        lines += told.table(self.arms, self.notes, multipliers or {}, f"learning rate{by}")
        lines += told.cost(self.arms, self.asked, self.samples, done, count)
        print("\n".join(lines), flush=True)

    # -- the tuning stage --------------------------------------------------------------------------

    def tuned(self) -> dict[str, float] | None:
        """{arm: multiplier of its learning rate}; None while the search has not ended."""
        arms = [arm for arm in self.arms if arm.source is None]
        place = self.folder / tuning.FOLDER
        self.hydra.aim(place)
        batch = [self.candidate(arm, m, place) for arm in arms for m in tuning.first(arm)]
        while True:
            self.execute(batch)
            scores = {arm.name: [] for arm in arms}
            for job in batch:
                scores[job.arm.name].append(tuning.score(job.multiplier, job.folder))
            if self.unscored(batch):
                return None
            more = {arm.name: tuning.further(arm, scores[arm.name]) for arm in arms}
            if not any(more.values()):
                return self.chosen(scores)
            batch += [self.candidate(arm, more[arm.name], place) for arm in arms if more[arm.name]]
            batch.sort(key=lambda job: (arms.index(job.arm), job.multiplier))

    def candidate(self, arm: Arm, multiplier: float, place: Path) -> Job:
        lines = tuning.lines(arm, multiplier)
        job = Job(arm, self.asked.tuning_seed, lines, multiplier=multiplier, stage="tuning")
        job.folder = self.hydra.place(job, place)
        return job

    def unscored(self, batch: list[Job]) -> bool:
        """Whether candidates have no score yet, and why. UserError where one has failed: no choice may rest
        on what says nothing of a learning rate."""
        left = [job for job in batch if tuning.score(job.multiplier, job.folder).error is None]
        where = os.path.relpath(self.folder / tuning.FOLDER)
        if failed := [job.name for job in left if plans.state(job.folder) == "failed"]:
            raise UserError(
                f"the search for learning rates needs a result of every run, and {'; '.join(failed)} failed: "
                f"adabatch-status --failed {where} shows why; compare.retry=failed with the same command "
                "tries again"
            )
        if left and not self.waits:
            log.info("tuning has been submitted: when it has ended, the same command goes on")
        elif left:
            names = "; ".join(job.name for job in left)
            log.warning(f"no result of {names} (adabatch-status {where}): the same command goes on")
        return bool(left)

    def chosen(self, scores: dict) -> dict[str, float]:
        searched = [arm for arm in self.arms if arm.source is None]
        found = tuning.write(self.folder, self.asked.tuning_seed, searched, scores)
        words = ", ".join(f"{name} x{m:.4g}" for name, m in found.items())
        log.info(f"learning rates by the search ({tuning.FILE}): {words}")
        for trouble in search.troubles(search.read(self.folder, digest)):
            log.warning(trouble)
        print("\n".join(told.table(self.arms, [], found, "learning rate by the search")), flush=True)
        return found

    # -- running -----------------------------------------------------------------------------------

    def execute(self, every: list[Job]) -> None:
        """Until every job has ended, or where submitted jobs are not waited for has been submitted."""
        launcher, waiting = None, ""
        while True:
            standing = self.standing(every)
            todo = [job for job, due in standing if due == TODO]
            if not todo:
                busy = [job for job, due in standing if due == BUSY]
                if not busy or not self.waits:
                    return
                waiting = self.wait(busy, waiting)
                continue
            launcher = launcher or self.launcher_of()
            self.launch(launcher, todo[:1] if self.foreground else todo)

    def wait(self, busy: list[Job], said: str) -> str:
        """A while, for runs of this process's own or of others; what was said of them."""
        if sweep.pool.jobs:
            sweep.pool.wait_for_one()
            return said
        words = ", ".join(job.name for job in busy[:3]) + (", ..." if len(busy) > 3 else "")
        if said != words:
            log.info(f"waiting for what other processes have begun: {words} (Ctrl-C leaves them to it)")
        time.sleep(POLL)
        return words

    def standing(self, every: list[Job]) -> list[tuple[Job, str]]:
        """What is to be done with each run now. Sources come before their controls, so that one that ends
        meanwhile hides no control."""
        alive, found = plans.living(every), []
        before, self.lost = self.lost, plans.infeasible(every, self.asked.retry)
        for name in sorted(self.lost - before):
            log.warning(
                f"{name} ran out of memory, so it takes no part: no other seed of it is begun "
                "(compare.retry=out_of_memory with the same command tries again)"
            )
        for job in every:
            given = self.asked.retry, alive, self.lost
            due = plans.due(job, *given)
            if due == LATER and plans.due(job.needs, *given) == DONE:
                self.locate(job)
                due = plans.due(job, *given)
            elsewhere = job.record and job.record["state"] in ("in use", "refused")
            if due == DONE and elsewhere and plans.state(job.folder) in sweep.accepted:
                sweep.forget(job.record)  # another sweeper was faster to begin it: no failure of this one
            found.append((job, due))
        return found

    def locate(self, job: Job) -> None:
        """The folder of a control's run, whose source's has finished. One that cannot be replayed refuses
        this run alone, once in a command."""
        run = os.path.relpath(job.needs.folder)
        job.lines = (
            "schedule=replay", f"schedule.run={quoted(run)}", f"schedule.control={job.arm.control}"
        )  # fmt: skip
        try:
            job.folder = self.hydra.place(job, self.folder)
        except UserError as error:
            why = f"{job.name} cannot be made: {error}"
            log.error(f"{why}. Move {run} elsewhere, and the same command makes that run again")
            job.record = {"overrides": self.hydra.overrides(job), "folder": run, "state": "refused",
                          "error": "see above", "exit_code": 2, "summary": None}  # fmt: skip
            sweep.records.append(job.record)

    def launch(self, launcher, batch: list[Job]) -> None:
        if self.foreground:
            published.check(self.config)  # before the first of them: all read the same data
        found = launcher.launch([self.hydra.overrides(job) for job in batch], self.number)
        self.number += len(batch)
        for result in found:
            _ = result.return_value  # raises what was raised before there was a process for the job
        for job in batch:
            if job.record:
                sweep.forget(job.record)
            if self.foreground:
                job.record = sweep.records[-1]
            else:
                job.tried = True

    # -- the end -----------------------------------------------------------------------------------

    def verdict(self) -> int:
        """The sentence of adabatch-report, and what is missing. Its exit code."""
        folder = os.path.relpath(self.folder)
        states = [plans.state(path.parent) for path in self.folder.glob("*/status.json")]
        if not set(plans.ENDED) & set(states):
            print(f"no run has ended yet; the same command goes on. adabatch-status {folder}")
            return 0
        from adabatch.verdict.command import command

        failed = states.count("failed")
        code = max(command([str(self.folder)]), int(bool(failed)))
        if failed and "failed" not in self.asked.retry:
            why = f"adabatch-status --failed {folder} shows why"
            print(f"{failed} failed: {why}; compare.retry=failed with the same command tries again")
        left = "" if self.over else "; the same command goes on"
        print(f"the whole again: adabatch-report {folder}{left}")
        return code
