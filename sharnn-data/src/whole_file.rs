//! Files that are there whole or not at all, and reading and locking them with care.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

use tempfile::{Builder, NamedTempFile};

/// Begins the name of what is not a file of its own yet.
const ASIDE: &str = ".tmp-";

/// Writes a file aside, in the same directory, waits until it is on the disk and renames it. Whatever goes wrong, a file
/// that had the name before is still there.
///
/// A device or a pipe is written as it is. A link leads to the file that is replaced, unless there is none: then it is replaced
/// itself. A hard link to the old file keeps it. The new one has the old one's rights.
///
/// # Errors
/// That of `fill`, or what the system says. Nothing is left or changed then.
pub fn write<E: From<io::Error>>(
    path: impl AsRef<Path>,
    fill: impl FnOnce(&mut dyn Write) -> Result<(), E>,
) -> Result<(), E> {
    let path = path.as_ref();
    let existing = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        metadata => Some(metadata?),
    };
    if existing.as_ref().is_some_and(|metadata| !metadata.is_file()) {
        let mut out = BufWriter::new(Limited(File::options().write(true).open(path)?));
        fill(&mut out)?;
        return Ok(out.flush()?);
    }
    if existing.as_ref().is_some_and(|metadata| metadata.permissions().readonly()) {
        let error = io::Error::new(io::ErrorKind::PermissionDenied, "the file that has the name is read-only");
        return Err(error.into());
    }
    let path = if existing.is_some() { &fs::canonicalize(path)? } else { path };

    // Removed on every way out but the last.
    let mut aside = create_aside(folder(path))?;
    if let Some(existing) = existing {
        aside.as_file().set_permissions(existing.permissions())?;
    }
    let mut out = BufWriter::new(Limited(aside.as_file_mut()));
    fill(&mut out)?;
    out.flush()?;
    drop(out);
    aside.as_file().sync_all()?;
    aside.persist(path).map_err(|error| error.error)?;
    sync_place(path);
    Ok(())
}

/// A writer that names the limit on the sizes of files where that is what it came to.
struct Limited<W>(W);

impl<W: Write> Write for Limited<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(named_limit)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The same error; where a file would be larger than it may be, with the way out.
pub fn named_limit(error: io::Error) -> io::Error {
    match error.kind() {
        kind @ io::ErrorKind::FileTooLarge => io::Error::new(
            kind,
            "the file would be larger than files may be here: raise the limit (ulimit -f), or write elsewhere",
        ),
        _ => error,
    }
}

/// A file aside, with the rights of any new one. Errors say nothing of its name, which nobody asked for.
fn create_aside(folder: &Path) -> io::Result<NamedTempFile> {
    let mut said = None;
    let created = Builder::new().prefix(ASIDE).make_in(folder, |path| {
        // What the library makes of an error names the file.
        File::options().read(true).write(true).create_new(true).open(path).inspect_err(|error| {
            said = error.raw_os_error();
        })
    });
    created.map_err(|error| match (error.kind(), said) {
        (io::ErrorKind::NotFound, _) => {
            io::Error::new(io::ErrorKind::NotFound, format!("there is no directory {}", folder.display()))
        }
        (_, Some(code)) => io::Error::from_raw_os_error(code),
        (kind, None) => kind.into(),
    })
}

/// The directory that a file is in.
fn folder(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes a file's new name last through a power cut, where its directory lets itself be opened for that. The file is in its
/// place whether or not it does.
pub(crate) fn sync_place(file: &Path) {
    let _ = sync_dir(folder(file));
}

/// Opens a file to read. A pipe, which may never answer, and a device, which may have no end, are refused.
///
/// # Errors
/// What the system says, or [`InvalidInput`](io::ErrorKind::InvalidInput) for what is no regular file.
pub fn open(path: impl AsRef<Path>) -> io::Result<File> {
    open_with(File::options().read(true), path)
}

/// Opens a file, or makes it, as the options say. What is there already must be a regular file.
///
/// # Errors
/// As [`open`].
pub fn open_with(options: &OpenOptions, path: impl AsRef<Path>) -> io::Result<File> {
    let path = path.as_ref();
    if fs::metadata(path).is_ok_and(|there| !there.is_file()) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    options.open(path)
}

/// Whether what is written to this path goes to a pipe or a device as it is, and may have to wait for a reader.
pub fn is_stream(path: impl AsRef<Path>) -> bool {
    fs::metadata(path).is_ok_and(|there| !there.is_file() && !there.is_dir())
}

/// Reads a file that should have no more than `most` bytes; of a longer one these.
///
/// # Errors
/// As [`open`], and what the system says.
pub fn read(path: impl AsRef<Path>, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Whose a lock is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// This process has it.
    Ours,
    /// Another process, or another opening of the file, has it.
    Theirs,
    /// The file system has no locks: nothing keeps a second process away.
    Missing,
}

/// Locks a file for this process, until it is closed.
///
/// # Errors
/// What the system says. That there are no locks is no error.
pub fn lock(file: &File) -> io::Result<Lock> {
    match file.try_lock() {
        Ok(()) => Ok(Lock::Ours),
        Err(TryLockError::WouldBlock) => Ok(Lock::Theirs),
        Err(TryLockError::Error(error)) if has_no_locks(&error) => Ok(Lock::Missing),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Whether a file system said that it has no locks: each says it in its own way.
fn has_no_locks(error: &io::Error) -> bool {
    #[cfg(unix)]
    let codes = [libc::ENOLCK, libc::ENOSYS, libc::EOPNOTSUPP, libc::ENOTSUP];
    #[cfg(not(unix))]
    let codes: [i32; 0] = [];
    error.kind() == io::ErrorKind::Unsupported || error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

/// Brings a directory's entries to the disk. Only Unix lets a directory be opened for that.
///
/// # Errors
/// What the system says.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) }
}

/// Whether there was no room: a full disk, or a quota used up.
pub fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}

#[cfg(test)]
mod tests {
    #[cfg(unix)]
    use std::fs::Permissions;

    use super::*;

    #[test]
    fn an_error_names_nothing_that_was_written_aside() {
        let dir = tempfile::tempdir().unwrap();
        let error = write(&dir.path().join("nowhere/a"), |_| Ok(())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let said = error.to_string();
        assert!(said.starts_with("there is no directory ") && said.ends_with("nowhere"), "{said}");
        fs::write(dir.path().join("file"), b"").unwrap();
        let error = write(&dir.path().join("file/a"), |_| Ok(())).unwrap_err();
        assert!(!error.to_string().contains(ASIDE), "{error}");
    }

    #[test]
    fn a_limit_on_sizes_is_no_full_disk() {
        let error = named_limit(io::ErrorKind::FileTooLarge.into());
        assert!(!is_full(&error) && error.to_string().contains("ulimit -f"), "{error}");
        assert!(is_full(&named_limit(io::ErrorKind::StorageFull.into())));
    }

    #[test]
    fn a_file_is_locked_once() {
        let dir = tempfile::tempdir().unwrap();
        let open = || File::options().create(true).append(true).open(dir.path().join("lock")).unwrap();
        let first = open();
        assert_eq!(lock(&first).unwrap(), Lock::Ours);
        assert_eq!(lock(&open()).unwrap(), Lock::Theirs);
        drop(first);
        assert_eq!(lock(&open()).unwrap(), Lock::Ours);
    }

    #[cfg(unix)]
    #[test]
    fn a_file_system_without_locks_says_so_in_several_ways() {
        for code in [libc::ENOLCK, libc::ENOSYS, libc::EOPNOTSUPP, libc::ENOTSUP] {
            assert!(has_no_locks(&io::Error::from_raw_os_error(code)), "{code}");
        }
        assert!(!has_no_locks(&io::Error::from_raw_os_error(libc::EIO)));
    }

    fn write(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
        super::write(path, fill)
    }

    #[test]
    fn a_full_disk_leaves_the_file_that_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write(&path, |out| out.write_all(b"good")).unwrap();
        let error = write(&path, |out| {
            out.write_all(&[0; 100_000])?;
            Err(io::ErrorKind::StorageFull.into())
        });
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read(&path).unwrap(), b"good");
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["a"], "what was written aside is gone");
    }

    #[cfg(unix)]
    #[test]
    fn what_may_have_no_end_is_not_opened() {
        for path in ["/dev/zero", "/"] {
            assert_eq!(open(path).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{path}");
        }
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        if made.is_ok_and(|status| status.success()) {
            assert_eq!(open(&pipe).unwrap_err().kind(), io::ErrorKind::InvalidInput);
            let made = open_with(File::options().create(true).append(true), &pipe);
            assert_eq!(made.unwrap_err().kind(), io::ErrorKind::InvalidInput);
            assert!(is_stream(&pipe) && !is_stream(dir.path()) && !is_stream(dir.path().join("nothing")));
        }
    }

    #[test]
    fn a_hard_link_keeps_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let [path, link] = ["a", "link"].map(|name| dir.path().join(name));
        write(&path, |out| out.write_all(b"old")).unwrap();
        fs::hard_link(&path, &link).unwrap();
        write(&path, |out| out.write_all(b"new")).unwrap();
        assert_eq!((fs::read(&path).unwrap(), fs::read(&link).unwrap()), (b"new".to_vec(), b"old".to_vec()));
    }

    #[cfg(unix)]
    #[test]
    fn rights_links_and_directories_are_respected() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let [plain, path, link] = ["plain", "a", "link"].map(|name| dir.path().join(name));
        File::create(&plain).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        write(&path, |out| out.write_all(b"old")).unwrap();
        assert_eq!(mode(&path), mode(&plain), "a new file is for whom any other is");
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        write(&link, |out| out.write_all(b"new")).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!((fs::read(&path).unwrap(), mode(&path)), (b"new".to_vec(), 0o600));
        // What the mask takes from new files stays where it was given.
        fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
        write(&path, |out| out.write_all(b"new")).unwrap();
        assert_eq!(mode(&path), 0o666);
        fs::set_permissions(&path, Permissions::from_mode(0o400)).unwrap();
        let error = write(&path, |out| out.write_all(b"newer")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(write(dir.path(), |out| out.write_all(b"x")).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }
}
