//! The directory of a run: locked for one process, and never half-written.
//!
//! ```text
//! run/
//!   lock               locked while a process trains here
//!   group              what the first of many processes left for the others, to see that it is the same directory
//!   metrics.jsonl      what was measured, a line each
//!   best/              weights of the best validation
//!   step-00001000/     the last checkpoints
//!   step-00002000/
//! ```
//!
//! A directory in it is written aside under a name that begins with `.tmp-`, brought to the disk, and then renamed. What
//! a crash leaves behind under such a name is removed when the directory is opened next.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use sharnn_data::whole_file::{self, Lock};

use super::CheckpointError;

/// Begins the name of what is not whole, or not needed any more.
const ASIDE: &str = ".tmp-";
/// Begins the name of a directory while another takes its place.
const REPLACED: &str = ".tmp-old-";
const STEP: &str = "step-";
/// Begin the names of directories that a run is writing, replacing or removing.
const OWN: [&str; 4] = [".tmp-best", ".tmp-step-", ".tmp-gone-step-", REPLACED];
const LOCK: &str = "lock";
const SIGN: &str = "group";

/// An open, locked run directory. The lock goes with this value, or with the process.
#[derive(Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
    /// `None` where another process of a group has locked it, which alone writes.
    _lock: Option<File>,
    /// Whether the file system keeps other processes away.
    is_protected: bool,
}

/// Name of the checkpoint after `step` steps.
pub(crate) fn step_name(step: u64) -> String {
    format!("{STEP}{step:08}")
}

/// Whether another directory is about to take the place of the one of this name.
pub(crate) fn is_being_replaced(run_dir: &Path, name: &str) -> bool {
    run_dir.join(format!("{REPLACED}{name}")).exists()
}

/// The checkpoints of a run directory, oldest first; none where there is no such directory.
pub(crate) fn checkpoints(run_dir: &Path) -> Result<Vec<(u64, PathBuf)>, CheckpointError> {
    let mut found: Vec<_> = entries(run_dir)?
        .into_iter()
        .filter_map(|(name, path)| Some((name.strip_prefix(STEP)?.parse().ok()?, path)))
        .filter(|(_, path)| path.is_dir())
        .collect();
    found.sort();
    Ok(found)
}

fn entries(dir: &Path) -> Result<Vec<(String, PathBuf)>, CheckpointError> {
    let list = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        list => list.map_err(CheckpointError::io("list", dir))?,
    };
    list.map(|entry| {
        let entry = entry.map_err(CheckpointError::io("list", dir))?;
        Ok((entry.file_name().to_string_lossy().into_owned(), entry.path()))
    })
    .collect()
}

impl RunDir {
    /// Creates the directory where it is missing, locks it, and removes what a crash left half-written.
    pub(crate) fn open(path: &Path) -> Result<Self, CheckpointError> {
        fs::create_dir_all(path).map_err(CheckpointError::io("create", path))?;
        let lock_path = path.join(LOCK);
        let lock = whole_file::open_with(File::options().create(true).write(true).truncate(false), &lock_path);
        let lock = lock.map_err(CheckpointError::io("open", &lock_path))?;
        let whose = whole_file::lock(&lock).map_err(CheckpointError::io("lock", &lock_path))?;
        if whose == Lock::Theirs {
            return Err(CheckpointError::Locked { path: lock_path });
        }
        let run = Self { path: path.into(), _lock: Some(lock), is_protected: whose == Lock::Ours };
        run.clean()?;
        Ok(run)
    }

    /// Leaves a sign in the directory, unlike any before it, by which other processes know it.
    pub(crate) fn mark(&self) -> Result<Vec<u8>, CheckpointError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let sign = format!("process {} at {} ns\n", std::process::id(), now.as_nanos()).into_bytes();
        let path = self.path.join(SIGN);
        let written: io::Result<()> = whole_file::write(&path, |out| out.write_all(&sign));
        written.map_err(CheckpointError::io("write", &path))?;
        Ok(sign)
    }

    /// Whether the directory of that name has this sign.
    pub(crate) fn is_marked(path: &Path, sign: &[u8]) -> bool {
        // What was not there when it was looked for may be remembered as missing on a file system of a network; who wants to
        // create it is told better.
        if fs::create_dir(path).is_ok() {
            // It is not the one.
            let _ = fs::remove_dir(path);
        }
        whole_file::read(path.join(SIGN), sign.len() as u64 + 1).is_ok_and(|found| found == sign)
    }

    /// A directory that another process of the group has opened, to read.
    pub(crate) fn of_group(path: &Path) -> Self {
        Self { path: path.into(), _lock: None, is_protected: true }
    }

    /// Whether a second process that trains here is kept away. Not where the file system has no locks.
    pub(crate) fn is_protected(&self) -> bool {
        self.is_protected
    }

    /// Removes what a crash left half-written; puts back what was being replaced if nothing had taken its place yet.
    fn clean(&self) -> Result<(), CheckpointError> {
        for (name, path) in entries(&self.path)? {
            match name.strip_prefix(REPLACED).map(|name| self.path.join(name)) {
                Some(target) if !target.exists() => {
                    fs::rename(&path, &target).map_err(CheckpointError::io("put back", &target))?;
                }
                // Of the directory's own making: nothing else in it is touched.
                _ if OWN.iter().any(|own| name.starts_with(own)) => remove(&path)?,
                _ => {}
            }
        }
        Ok(())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the directory `name`: `fill` gets an empty directory to write into, and only when that succeeds and all of
    /// it is on the disk does the name stand for it. A directory of that name is replaced.
    pub(crate) fn write_dir<T>(
        &self,
        name: &str,
        fill: impl FnOnce(&Path) -> Result<T, CheckpointError>,
    ) -> Result<T, CheckpointError> {
        let aside = self.path.join(format!("{ASIDE}{name}"));
        let target = self.path.join(name);
        let write = || {
            remove(&aside)?;
            fs::create_dir(&aside).map_err(CheckpointError::io("create", &aside))?;
            let filled = fill(&aside)?;
            for (_, file) in entries(&aside)? {
                sync(&file)?;
            }
            sync_dir(&aside)?;
            Ok(filled)
        };
        let filled = write().map_err(|error: CheckpointError| {
            // The first error is the one to report; what is left is removed when the directory is opened next.
            let _ = remove(&aside);
            error.about(&aside, &target)
        })?;
        let old = self.path.join(format!("{REPLACED}{name}"));
        if target.exists() {
            remove(&old)?;
            fs::rename(&target, &old).map_err(CheckpointError::io("replace", &target))?;
        }
        fs::rename(&aside, &target).map_err(CheckpointError::io("rename to", &target))?;
        sync_dir(&self.path)?;
        remove(&old)?;
        Ok(filled)
    }

    /// Removes the directory `name`, where there is one.
    pub(crate) fn remove_dir(&self, name: &str) -> Result<(), CheckpointError> {
        remove(&self.path.join(name))
    }

    /// Removes all checkpoints but the newest `keep`. That of the start, before any step, is for as long as there is no other.
    pub(crate) fn prune(&self, keep: usize) -> Result<(), CheckpointError> {
        let mut found = checkpoints(&self.path)?;
        let start = usize::from(found.len() > 1 && found[0].0 == 0);
        found.truncate(found.len().saturating_sub(keep).max(start));
        for (step, path) in found {
            // Under a name that no resumed run mistakes for a checkpoint, should the removal be cut short.
            let aside = self.path.join(format!("{ASIDE}gone-{}", step_name(step)));
            remove(&aside)?;
            fs::rename(&path, &aside).map_err(CheckpointError::io("remove", &path))?;
            remove(&aside)?;
        }
        Ok(())
    }
}

/// Removes a file or a directory with all that is in it, where there is one.
fn remove(path: &Path) -> Result<(), CheckpointError> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(CheckpointError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

fn sync(file: &Path) -> Result<(), CheckpointError> {
    // Only Windows needs the right to write for it, which may have been taken from the best weights.
    let opened = File::options().read(cfg!(unix)).write(cfg!(not(unix))).open(file);
    opened.and_then(|file| file.sync_all()).map_err(CheckpointError::io("write to the disk", file))
}

fn sync_dir(dir: &Path) -> Result<(), CheckpointError> {
    whole_file::sync_dir(dir).map_err(CheckpointError::io("write to the disk", dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(path: &Path) -> String {
        fs::read_to_string(path).unwrap()
    }

    fn put(dir: &Path, name: &str, text: &str) -> Result<(), CheckpointError> {
        fs::write(dir.join(name), text).map_err(CheckpointError::io("write", dir))
    }

    #[test]
    fn a_second_process_in_the_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let first = RunDir::open(dir.path()).unwrap();
        assert!(matches!(RunDir::open(dir.path()), Err(CheckpointError::Locked { .. })));
        drop(first);
        RunDir::open(dir.path()).unwrap();
    }

    #[test]
    fn a_full_disk_leaves_the_directory_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::open(dir.path()).unwrap();
        run.write_dir("best", |dir| put(dir, "a", "old")).unwrap();
        let full = |aside: &Path| {
            put(aside, "a", "half")?;
            let full = io::Error::from(io::ErrorKind::StorageFull);
            Err::<(), _>(CheckpointError::io("write", &aside.join("b"))(full))
        };
        let error = run.write_dir("best", full).unwrap_err().to_string();
        assert!(error.contains("best/b: ") && !error.contains(ASIDE), "{error}");
        assert!(error.contains("free some space and resume: earlier checkpoints are intact"), "{error}");
        assert_eq!(text(&dir.path().join("best/a")), "old");
        assert!(!dir.path().join(".tmp-best").exists());
    }

    #[test]
    fn a_directory_is_replaced_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::open(dir.path()).unwrap();
        run.write_dir("best", |dir| put(dir, "a", "1")).unwrap();
        run.write_dir("best", |dir| put(dir, "b", "2")).unwrap();
        assert!(!dir.path().join("best/a").exists());
        assert_eq!(text(&dir.path().join("best/b")), "2");
        let names: Vec<_> = entries(dir.path()).unwrap().into_iter().map(|(name, _)| name).collect();
        assert!(names.iter().all(|name| !name.starts_with(ASIDE)), "{names:?}");
    }

    #[test]
    fn leftovers_of_a_crash_are_removed_and_never_taken_for_checkpoints() {
        let dir = tempfile::tempdir().unwrap();
        for name in
            [".tmp-step-00000009", ".tmp-old-step-12", ".tmp-old-best", "step-00000003", "step-12", "steps", "step-x"]
        {
            fs::create_dir(dir.path().join(name)).unwrap();
            put(&dir.path().join(name), "a", "1").unwrap();
        }
        put(dir.path(), "step-00000099", "a file").unwrap();
        put(dir.path(), ".tmp-other", "what somebody else writes aside").unwrap();
        let run = RunDir::open(dir.path()).unwrap();
        for name in [".tmp-step-00000009", ".tmp-old-step-12", ".tmp-old-best"] {
            assert!(!dir.path().join(name).exists(), "{name}");
        }
        assert_eq!(text(&dir.path().join("best/a")), "1", "nothing had replaced it yet");
        assert!(dir.path().join(".tmp-other").exists());
        let steps = || checkpoints(dir.path()).unwrap().into_iter().map(|(step, _)| step).collect::<Vec<_>>();
        assert_eq!(steps(), [3, 12]);
        run.prune(1).unwrap();
        assert_eq!(steps(), [12]);
        assert!(dir.path().join("step-x").exists());
    }
}
