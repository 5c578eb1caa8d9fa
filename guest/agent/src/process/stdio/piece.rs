//! A piece of a stream, as it lies in the message that carries it.
//!
//! Must never happen: a message that differs from what the generated code would make of the same bytes. That would copy them first.

use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

/// The field `data` of `ReadStreamResponse`.
const TAG: u8 = 1 << 3 | 2;
/// What comes before the bytes: the tag, and the length of anything shorter than 2 MiB.
const ROOM: usize = 4;

/// Bytes, behind room for what a message has before them.
#[derive(Debug, PartialEq, Eq)]
pub struct Piece(Vec<u8>);

impl Piece {
    /// No bytes: the end of a stream.
    pub fn end() -> Self {
        Self(vec![0; ROOM])
    }

    /// Reads at most `len` bytes.
    pub fn read(fd: impl AsFd, len: usize) -> nix::Result<Self> {
        let mut bytes = Vec::with_capacity(ROOM + len);
        bytes.resize(ROOM, 0);
        let spare = bytes.spare_capacity_mut();
        // SAFETY: the kernel writes no more than `len` bytes into memory that has room for as many.
        let count = unsafe { libc::read(fd.as_fd().as_raw_fd(), spare.as_mut_ptr().cast(), len.min(spare.len())) };
        let count = usize::try_from(Errno::result(count)?).unwrap_or(0);
        // SAFETY: so many it has written.
        unsafe { bytes.set_len(ROOM + count) };
        Ok(Self(bytes))
    }

    /// What is beyond `len` bytes, if anything is.
    pub fn split(&mut self, len: usize) -> Option<Self> {
        let rest = self.get(len..).filter(|rest| !rest.is_empty())?;
        let rest = Self([&[0; ROOM], rest].concat());
        self.0.truncate(ROOM + len);
        Some(rest)
    }

    /// The bytes of the `ReadStreamResponse` that has these. Those of a long piece stay where they are.
    pub fn into_message(self) -> Vec<u8> {
        let mut rest = self.len();
        let mut message = self.0;
        if rest == 0 {
            return Vec::new();
        }
        let mut head = vec![TAG];
        while rest >= 0x80 {
            head.push((rest & 0x7f) as u8 | 0x80);
            rest >>= 7;
        }
        head.push(rest as u8);
        let begin = ROOM - head.len();
        message[begin..ROOM].copy_from_slice(&head);
        message.drain(..begin);
        message
    }
}

impl Deref for Piece {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0[ROOM..]
    }
}

#[cfg(test)]
mod tests {
    use protobuf::Message;

    use super::super::MAX_READ;
    use super::*;
    use crate::protocol::agent::ReadStreamResponse;

    #[test]
    fn a_message_is_what_the_generated_code_makes() {
        for len in [0, 1, 127, 128, 16_383, 16_384, 100_000, MAX_READ] {
            let data: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            let piece = Piece([&[0; ROOM], &data[..]].concat());
            assert_eq!(*piece, data[..]);
            let expected = ReadStreamResponse { data, ..Default::default() }.write_to_bytes().unwrap();
            assert!(piece.into_message() == expected, "{len} bytes");
        }
    }

    #[test]
    fn no_more_is_read_than_was_asked_for() {
        let (read, write) = nix::unistd::pipe().unwrap();
        nix::unistd::write(&write, b"hello").unwrap();
        assert_eq!(*Piece::read(&read, 3).unwrap(), *b"hel");
        assert_eq!(*Piece::read(&read, 100).unwrap(), *b"lo");
        drop(write);
        assert_eq!(Piece::read(&read, 100).unwrap(), Piece::end());
    }
}
