//! The few bits of protobuf that six small messages need.

/// Writes fields in the order they are given. Proto3: empty strings and zeros are left out.
#[derive(Default)]
pub struct Encoder(Vec<u8>);

impl Encoder {
    pub fn integer(mut self, field: u32, value: u64) -> Self {
        if value != 0 {
            self.varint(u64::from(field) << 3);
            self.varint(value);
        }
        self
    }

    pub fn text(self, field: u32, value: &str) -> Self {
        if value.is_empty() { self } else { self.message(field, value.as_bytes()) }
    }

    /// A length-delimited field, written even when empty.
    pub fn message(mut self, field: u32, value: &[u8]) -> Self {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
        self
    }

    pub fn finish(self) -> Vec<u8> {
        self.0
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// One field's value as it was on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    Integer(u64),
    Bytes(&'a [u8]),
    /// A fixed-size number, which none of our messages has.
    Fixed,
}

/// Decode a whole message into (field, value); None when the bytes are not one.
pub fn decode(mut bytes: &[u8]) -> Option<Vec<(u32, Value<'_>)>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = take_varint(&mut bytes)?;
        let field = u32::try_from(key >> 3).ok().filter(|field| *field > 0)?;
        let value = match key & 7 {
            0 => Value::Integer(take_varint(&mut bytes)?),
            1 => take(&mut bytes, 8).map(|_| Value::Fixed)?,
            2 => {
                let size = usize::try_from(take_varint(&mut bytes)?).ok()?;
                Value::Bytes(take(&mut bytes, size)?)
            }
            5 => take(&mut bytes, 4).map(|_| Value::Fixed)?,
            _ => return None,
        };
        fields.push((field, value));
    }
    Some(fields)
}

/// The last string in `field`, as proto3 has it; empty when absent.
pub fn text<'a>(fields: &[(u32, Value<'a>)], field: u32) -> Option<&'a str> {
    match fields.iter().rfind(|(number, _)| *number == field) {
        Some((_, Value::Bytes(bytes))) => std::str::from_utf8(bytes).ok(),
        Some(_) => None,
        None => Some(""),
    }
}

fn take<'a>(bytes: &mut &'a [u8], size: usize) -> Option<&'a [u8]> {
    let (head, tail) = bytes.split_at_checked(size)?;
    *bytes = tail;
    Some(head)
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = *take(bytes, 1)?.first()?;
        if shift == 63 && byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_bytes() {
        // printf 'a:150 b:"testing"' in protobuf's own encoding guide: 08 96 01, 12 07 …
        let bytes = Encoder::default().integer(1, 150).text(2, "testing").finish();
        assert_eq!(bytes, b"\x08\x96\x01\x12\x07testing");
        assert_eq!(decode(&bytes), Some(vec![(1, Value::Integer(150)), (2, Value::Bytes(b"testing"))]));
    }

    #[test]
    fn defaults_are_left_out() {
        assert!(Encoder::default().integer(1, 0).text(2, "").finish().is_empty());
        assert_eq!(Encoder::default().message(2, b"").finish(), b"\x12\x00");
    }

    #[test]
    fn negative_numbers_take_ten_bytes() {
        let bytes = Encoder::default().integer(3, -8i64 as u64).finish();
        assert_eq!(bytes.len(), 11);
        assert_eq!(decode(&bytes), Some(vec![(3, Value::Integer(-8i64 as u64))]));
    }

    #[test]
    fn what_is_not_protobuf() {
        for bytes in [&b"{\"version\":2}"[..], b"unix:///run/x", b"\x08", b"\x12\x05ab", b"\x00\x00", &[0x80; 11]] {
            assert_eq!(decode(bytes), None, "{bytes:?}");
        }
        let mut overlong = vec![0x08];
        overlong.extend([0xff; 9]);
        overlong.push(0x02);
        assert_eq!(decode(&overlong), None);
    }

    #[test]
    fn last_one_wins_and_wrong_types_do_not_count() {
        let fields = [(1, Value::Bytes(b"a")), (1, Value::Bytes(b"b")), (2, Value::Integer(1))];
        assert_eq!((text(&fields, 1), text(&fields, 2), text(&fields, 3)), (Some("b"), None, Some("")));
    }
}
