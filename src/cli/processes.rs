//! The processes that train together: this one alone, or those that `mpirun` started.

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use crate::BackendKind;
use crate::train::{Alone, Group, SharedGroup, launched_by_mpi, printable};
use anyhow::{Context, Result};

use super::machine::MachineArgs;
use super::pipe::Unwritten;
use super::{exit_code as print_and_exit_code, in_one_line, life};

/// How long the others leave it to the first process to tell of an error that all have.
const PATIENCE: Duration = Duration::from_secs(3);

/// The group of this process.
pub fn join() -> Result<SharedGroup> {
    if !launched_by_mpi() {
        return Ok(Arc::new(Alone));
    }
    #[cfg(feature = "mpi")]
    match crate::train::MpiGroup::join() {
        Some(group) => Ok(Arc::new(group)),
        None => anyhow::bail!("MPI is in use already"),
    }
    #[cfg(not(feature = "mpi"))]
    anyhow::bail!("MPI started this program, which was built without it: build it with --features mpi")
}

/// The exit code of a program; an error is printed in one line, and ends the whole group.
pub fn exit_code(group: &dyn Group, result: Result<ExitCode>) -> ExitCode {
    match result {
        Err(error) if group.size() > 1 && !life::is_stopped(&error) => tell_and_abort(group, 1, || {
            tell!("error: process {} of {}: {}", group.rank(), group.size(), in_one_line(&error));
        }),
        result => print_and_exit_code(result),
    }
}

/// Tells of an error, which the first process may have told of before, and ends the whole group.
fn tell_and_abort(group: &dyn Group, status: i32, tell: impl FnOnce()) -> ! {
    if !group.is_first() {
        std::thread::sleep(PATIENCE);
    }
    tell();
    group.abort(status)
}

/// The exit code where this process can't make sense of its arguments, after it has told so. The others may have been given other
/// ones, and would wait for it.
pub fn refuse_arguments(group: &dyn Group, error: &clap::Error) -> ExitCode {
    let status = error.exit_code();
    let text = error.to_string();
    // In colours, unless an argument would be obeyed by the terminal. There may be nobody left to tell.
    let print = || -> io::Result<()> {
        if printable(&text) != text {
            text.trim_end().lines().for_each(|line| tell!("{line}"));
            return Ok(());
        }
        error.print()?;
        io::stdout().flush()
    };
    if status != 0 && group.size() > 1 {
        tell_and_abort(group, status, || drop(print()));
    }
    if group.is_first() {
        let printed = print();
        // Help that nobody has is no help.
        if status == 0 {
            return print_and_exit_code(printed.context(Unwritten).map(|()| ExitCode::SUCCESS));
        }
    }
    ExitCode::from(status as u8)
}

/// Sets the number of threads that was asked for; else processes on one machine share its cores.
pub fn set_threads(group: &dyn Group, machine: &MachineArgs) -> Result<()> {
    let in_rust = matches!(machine.backend, BackendKind::Flex | BackendKind::NdArray);
    if machine.threads.is_none() && group.local_size() > 1 && in_rust {
        let share = share_of_cores(std::thread::available_parallelism()?.get(), group.local_size());
        machine.backend.set_threads(share)?;
        return Ok(());
    }
    machine.set_threads()
}

/// Threads of each of so many processes on as many cores as each of them may run on.
fn share_of_cores(cores: usize, processes: usize) -> usize {
    (cores / processes).max(1)
}

/// That an option was given to all processes or to none: what they ask of each other depends on it.
pub fn agree_to(group: &dyn Group, given: bool, option: &str) -> Result<()> {
    let mut with = [f64::from(u8::from(given))];
    group.sum_f64(&mut with);
    let (with, size) = (with[0], group.size());
    anyhow::ensure!(
        with == 0.0 || with == size as f64,
        "{option} was given to {with} of {size} processes: start all of them with the same options"
    );
    Ok(())
}

/// Lets the first process go ahead, and then the first one of each other machine, with what the others then find done.
pub fn in_turns<T>(group: &dyn Group, job: impl FnOnce() -> Result<T>) -> Result<T> {
    let wait = || group.sum(&mut [0.0]);
    let turn = if group.is_first() { 0 } else { 1 + group.local_rank().min(1) };
    (0..turn).for_each(|_| wait());
    let done = job()?;
    (turn..2).for_each(|_| wait());
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_agrees_with_itself() {
        for given in [false, true] {
            agree_to(&crate::train::Alone, given, "--resume").unwrap();
        }
    }

    #[test]
    fn processes_share_the_cores() {
        assert_eq!([share_of_cores(8, 3), share_of_cores(2, 2), share_of_cores(1, 4)], [2, 1, 1]);
    }
}
