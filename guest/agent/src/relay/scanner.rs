//! Finds the session handshake in the byte stream of a virtio-serial port.
//!
//! Owns: the first secret ever seen and the candidate bytes of a handshake that is still incomplete.
//! Must never happen: a secret that was once fixed is replaced without `forget`, or a byte of it is passed on to a session. The format
//! is that of `docs/contracts.md`, "Guest channel".
//!
//! The port is not a connection: when the host's daemon dies, the rest of its last frame is simply missing and the
//! next daemon's handshake follows directly. So the scanner looks for it at every position of the stream, also inside
//! what a frame header claims to be data.

/// First bytes of a handshake, host to guest.
pub const HELLO: [u8; 16] = *b"KATA-SHIMD-HELO\n";
/// First bytes of the answer, guest to host.
pub const ACK: [u8; 16] = *b"KATA-SHIMD-ACK0\n";
/// Bytes of the secret that follows `HELLO`.
pub const SECRET_LEN: usize = 32;
/// Bytes of the session that ends the handshake.
pub const SESSION_LEN: usize = 16;

const SECRET_END: usize = HELLO.len() + SECRET_LEN;
const LENGTH: usize = SECRET_END + SESSION_LEN;

/// So many bytes of `HELLO` in a row are held back until the next byte decides. Fewer are passed on at once: a frame may
/// well end with "K", and its reply must not wait for the next frame. Enough to keep the magic out of the data of a frame that was
/// cut short, unless the cut lies within its last seven bytes.
const HOLD_FROM: usize = 8;

/// The host's choice of a name for one connection.
pub type Session = [u8; SESSION_LEN];

/// What a run of bytes meant.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// Bytes for the session that is open; to be dropped when there is none.
    Data(Vec<u8>),
    /// A handshake was accepted: end the open session, begin this one.
    Hello(Session),
}

/// The state machine; feed it whatever `read` returned.
#[derive(Default)]
pub struct Scanner {
    secret: Option<[u8; SECRET_LEN]>,
    /// Bytes that so far are the beginning of a handshake.
    candidate: Vec<u8>,
    /// How many of `candidate` were already passed on as data.
    passed: usize,
}

impl Scanner {
    /// Consumes `bytes` and returns what they mean, in order. Adjacent data is merged.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        let mut data = Vec::with_capacity(bytes.len());
        let mut at = 0;
        while at < bytes.len() {
            if self.candidate.is_empty() {
                let plain = bytes[at..].iter().take_while(|&&byte| byte != HELLO[0]).count();
                data.extend_from_slice(&bytes[at..at + plain]);
                at += plain;
            }
            let Some(&byte) = bytes.get(at) else { break };
            at += 1;
            self.candidate.push(byte);
            self.reject(&mut data);
            if self.candidate.len() == LENGTH {
                let session = self.accept();
                flush(&mut data, &mut events);
                events.push(Event::Hello(session));
            }
        }
        self.pass_short(&mut data);
        flush(&mut data, &mut events);
        events
    }

    /// Takes the next secret for the first: the machine is about to be copied, and each copy has a host of its own.
    pub fn forget(&mut self) {
        self.secret = None;
    }

    /// Gives up the shortest beginning of the candidate that leaves a possible handshake (or nothing).
    fn reject(&mut self, data: &mut Vec<u8>) {
        let keep = (0..=self.candidate.len()).find(|&start| self.possible(start)).unwrap_or(self.candidate.len());
        if keep == 0 {
            return;
        }
        let unsent = self.passed.min(keep);
        data.extend(self.candidate.drain(..keep).skip(unsent));
        self.passed -= unsent;
    }

    /// Whether the candidate from `start` on can still become an acceptable handshake.
    fn possible(&self, start: usize) -> bool {
        let bytes = &self.candidate[start..];
        let magic = bytes.len().min(HELLO.len());
        if bytes[..magic] != HELLO[..magic] {
            return false;
        }
        match (&self.secret, bytes.len()) {
            (Some(secret), length) if length > HELLO.len() => {
                let end = length.min(SECRET_END);
                bytes[HELLO.len()..end] == secret[..end - HELLO.len()]
            }
            _ => true,
        }
    }

    /// Takes the complete handshake out of the candidate and fixes the secret if it is the first.
    fn accept(&mut self) -> Session {
        let mut session = Session::default();
        session.copy_from_slice(&self.candidate[SECRET_END..LENGTH]);
        let mut secret = [0; SECRET_LEN];
        secret.copy_from_slice(&self.candidate[HELLO.len()..SECRET_END]);
        self.secret.get_or_insert(secret);
        self.candidate.clear();
        self.passed = 0;
        session
    }

    /// Passes on a candidate too short to be held back.
    fn pass_short(&mut self, data: &mut Vec<u8>) {
        if self.candidate.len() < HOLD_FROM {
            data.extend_from_slice(&self.candidate[self.passed..]);
            self.passed = self.candidate.len();
        }
    }
}

fn flush(data: &mut Vec<u8>, events: &mut Vec<Event>) {
    if !data.is_empty() {
        events.push(Event::Data(std::mem::take(data)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: [u8; 32] = [0x5a; 32];
    const FIRST: Session = [1; 16];
    const SECOND: Session = [2; 16];

    fn hello(secret: &[u8; 32], session: &Session) -> Vec<u8> {
        [&HELLO[..], secret, session].concat()
    }

    fn opened() -> Scanner {
        let mut scanner = Scanner::default();
        assert_eq!(scanner.feed(&hello(&SECRET, &FIRST)), [Event::Hello(FIRST)]);
        scanner
    }

    /// Feeds the chunks and returns all data and all sessions.
    fn run(scanner: &mut Scanner, chunks: &[&[u8]]) -> (Vec<u8>, Vec<Session>) {
        let (mut data, mut sessions) = (Vec::new(), Vec::new());
        for event in chunks.iter().flat_map(|chunk| scanner.feed(chunk)) {
            match event {
                Event::Data(bytes) => data.extend(bytes),
                Event::Hello(session) => sessions.push(session),
            }
        }
        (data, sessions)
    }

    #[test]
    fn handshake_split_at_every_byte() {
        let stream = hello(&SECRET, &FIRST);
        for cut in 0..=stream.len() {
            let (data, sessions) = run(&mut Scanner::default(), &[&stream[..cut], &stream[cut..], b"frame"]);
            assert_eq!(sessions, [FIRST], "cut at {cut}");
            assert_eq!(&data[data.len() - 5..], b"frame");
        }
    }

    #[test]
    fn handshake_byte_by_byte() {
        let stream = hello(&SECRET, &FIRST);
        let chunks: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(run(&mut Scanner::default(), &chunks).1, [FIRST]);
    }

    #[test]
    fn garbage_before_the_handshake() {
        let stream = [b"\x00\xffKATA-KATA-SHIMD-KATA-SHIMD-HEL".as_slice(), &hello(&SECRET, &FIRST)].concat();
        let mut scanner = Scanner::default();
        let (data, sessions) = run(&mut scanner, &[&stream]);
        assert_eq!(sessions, [FIRST]);
        assert_eq!(data, &stream[..stream.len() - 64]);
    }

    #[test]
    fn second_handshake_in_mid_frame() {
        let stream = [b"half a fra".as_slice(), &hello(&SECRET, &SECOND), b"next"].concat();
        for cut in 0..=stream.len() {
            let (data, sessions) = run(&mut opened(), &[&stream[..cut], &stream[cut..]]);
            assert_eq!(sessions, [SECOND], "cut at {cut}");
            assert!(data.starts_with(b"half a fra") && data.ends_with(b"next"));
            assert!(data.len() < b"half a franext".len() + HOLD_FROM, "the magic reached the old session");
        }
    }

    #[test]
    fn wrong_secret_is_data() {
        let stream = hello(&[0x11; 32], &SECOND);
        for cut in 0..=stream.len() {
            let (data, sessions) = run(&mut opened(), &[&stream[..cut], &stream[cut..]]);
            assert!(sessions.is_empty());
            assert_eq!(data, stream, "every byte of it is passed on, once and in order");
        }
    }

    #[test]
    fn a_guess_right_up_to_the_last_byte_is_data() {
        let mut guess = SECRET;
        guess[31] ^= 1;
        let stream = [hello(&guess, &SECOND), hello(&SECRET, &SECOND)].concat();
        let (data, sessions) = run(&mut opened(), &[&stream]);
        assert_eq!(sessions, [SECOND]);
        assert_eq!(data, hello(&guess, &SECOND));
    }

    #[test]
    fn forged_handshake_does_not_fix_a_new_secret() {
        let mut scanner = opened();
        run(&mut scanner, &[&hello(&[7; 32], &SECOND)]);
        assert_eq!(run(&mut scanner, &[&hello(&[7; 32], &SECOND)]).1, Vec::<Session>::new());
        assert_eq!(run(&mut scanner, &[&hello(&SECRET, &SECOND)]).1, [SECOND]);
    }

    #[test]
    fn short_prefix_is_not_delayed() {
        let mut scanner = opened();
        assert_eq!(scanner.feed(b"...KATA"), [Event::Data(b"...KATA".to_vec())]);
        assert_eq!(
            scanner.feed(b"-SH"),
            [Event::Data(b"-SH".to_vec())],
            "seven bytes of the magic are still just data"
        );
        assert_eq!(scanner.feed(b"I"), [], "eight are not");
        assert_eq!(scanner.feed(b"x"), [Event::Data(b"Ix".to_vec())]);
    }

    #[test]
    fn data_of_every_length_survives() {
        let stream: Vec<u8> =
            (0..4096u32).map(|i| (i * 7 % 251) as u8).chain(*b"KATA-SHIMD-HELO").chain(*b"!").collect();
        for size in [1, 2, 3, 5, 16, 63, 64, 65, 4096] {
            let chunks: Vec<&[u8]> = stream.chunks(size).collect();
            assert_eq!(run(&mut opened(), &chunks).0, stream);
        }
    }

    #[test]
    fn what_was_forgotten_is_fixed_anew_by_the_next() {
        let mut scanner = opened();
        let other = [0xa5; 32];
        assert!(run(&mut scanner, &[&hello(&other, &SECOND)]).1.is_empty());
        scanner.forget();
        assert_eq!(run(&mut scanner, &[&hello(&other, &SECOND)]).1, [SECOND]);
        assert!(run(&mut scanner, &[&hello(&SECRET, &FIRST)]).1.is_empty());
        assert_eq!(run(&mut scanner, &[&hello(&other, &FIRST)]).1, [FIRST]);
    }
}
