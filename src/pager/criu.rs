//! CRIU's side of the conversation, `criu restore` with lazy pages (criu/uffd.c): per process a `pid_t` in the container's numbering,
//! then one byte with the userfaultfd; a negative number is a zombie without one. When everything is restored, before any
//! task runs: RSTF. CRIU expects no answers.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use super::PagerError;
use crate::sys::passing;
use crate::sys::uffd::Uffd;

/// `LAZY_PAGES_RESTORE_FINISHED`; no pid is so great (PID_MAX_LIMIT is 2^22).
const RESTORE_FINISHED: u32 = 0x5253_5446;

/// What CRIU said.
#[derive(Debug)]
pub(super) enum Word {
    /// A process and its address space.
    Process(u32, Uffd),
    /// A process without memory.
    Zombie,
    /// Everything is restored.
    Finished,
    /// The connection has ended.
    HungUp,
}

/// Reads one word; the stream has something to read.
pub(super) fn listen(mut stream: &UnixStream) -> Result<Word, PagerError> {
    let mut number = [0u8; 4];
    match stream.read(&mut number) {
        Ok(0) => return Ok(Word::HungUp),
        Ok(got) => stream.read_exact(&mut number[got..]).map_err(PagerError::io("read a pid from CRIU"))?,
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(Word::HungUp),
        Err(error) => return Err(PagerError::io("read from CRIU")(error)),
    }
    if u32::from_ne_bytes(number) == RESTORE_FINISHED {
        return Ok(Word::Finished);
    }
    let Ok(vpid) = u32::try_from(i32::from_ne_bytes(number)) else { return Ok(Word::Zombie) };
    let (mut mark, mut fds) = ([0u8; 1], Vec::new());
    let got = passing::receive(stream.as_fd(), &mut mark, &mut fds)
        .map_err(PagerError::io("receive a userfaultfd from CRIU"))?;
    match (got, fds.pop()) {
        (1, Some(fd)) if fds.is_empty() => Ok(Word::Process(vpid, Uffd::from(fd))),
        _ => Err(PagerError::Malformed(format!("CRIU sent no userfaultfd for process {vpid}"))),
    }
}
