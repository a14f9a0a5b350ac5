//! WebSocket framing: whatever a client's bytes are, and wherever the network splits them.

use protocol::CloseCode;

use crate::websocket::decoder::{Decoder, Received};

/// Small, so that its limits are near.
const MESSAGE_BYTES_MAX: usize = 300;
const CONTROL_BYTES_MAX: usize = 125;
/// A buffer grows to twice what it must hold.
const HELD_BYTES_MAX: usize = 2 * (MESSAGE_BYTES_MAX + CONTROL_BYTES_MAX);
/// Longer input is split in so many places only.
const SPLITS_MAX: usize = 512;

/// A client's bytes mean the same wherever the network splits them, hold a bounded amount of memory, and nothing between
/// messages. What a client frames arrives.
pub fn websocket(bytes: &[u8]) {
    let whole = decoded([bytes]);
    assert_eq!(decoded(bytes.chunks(1)), whole, "byte by byte");
    let step = bytes.len() / SPLITS_MAX + 1;
    for at in (0..bytes.len()).step_by(step) {
        let (one, other) = bytes.split_at(at);
        assert_eq!(decoded([one, other]), whole, "split at {at}");
    }
    check_framed(bytes);
}

/// What comes of these pieces: messages, and the code that ends the connection.
fn decoded<'a>(
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<Received>, Result<(), CloseCode>) {
    let (mut decoder, mut all) = (Decoder::new(MESSAGE_BYTES_MAX), Vec::new());
    for mut piece in pieces {
        loop {
            let next = decoder.next(&mut piece);
            assert!(decoder.held() <= HELD_BYTES_MAX, "{}", decoder.held());
            match next {
                Ok(Some(received)) => all.push(received),
                Ok(None) => break,
                Err(code) => return (all, Err(code)),
            }
        }
        assert!(piece.is_empty(), "all was used");
    }
    for received in &all {
        match received {
            Received::Text(text) => assert!(text.len() <= MESSAGE_BYTES_MAX),
            Received::Ping(payload) => assert!(payload.len() <= CONTROL_BYTES_MAX),
            Received::Pong | Received::Close(_) => {}
        }
    }
    (all, Ok(()))
}

/// Frames `bytes` as a client may: a message in pieces, with pings between them.
fn check_framed(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let end = (0..=MESSAGE_BYTES_MAX.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    let text = &text[..end.unwrap_or_default()];
    let mut rest = text.as_bytes();
    let (mut framed, mut expected, mut opcode) = (Vec::new(), Vec::new(), 1);
    loop {
        let length = rest.first().map_or(0, |byte| usize::from(*byte) % (rest.len() + 1));
        let (piece, after) = rest.split_at(length.max(1).min(rest.len()));
        let is_last = if after.is_empty() { 0x80 } else { 0 };
        frame(&mut framed, is_last | opcode, piece);
        (rest, opcode) = (after, 0);
        if is_last != 0 {
            break;
        }
        let ping = &piece[..piece.len().min(CONTROL_BYTES_MAX)];
        frame(&mut framed, 0x89, ping);
        expected.push(Received::Ping(ping.to_vec()));
    }
    expected.push(Received::Text(text.to_owned()));
    frame(&mut framed, 0x88, &[0x03, 0xe8]);
    expected.push(Received::Close(Some(1000)));

    let mut decoder = Decoder::new(MESSAGE_BYTES_MAX);
    let mut input = &framed[..];
    for expected in expected {
        assert_eq!(decoder.next(&mut input), Ok(Some(expected)));
    }
    assert_eq!((decoder.held(), input), (0, &[][..]), "a connection at rest holds nothing");
}

fn frame(into: &mut Vec<u8>, first: u8, payload: &[u8]) {
    let mask = [first, 0x55, payload.len() as u8, payload.first().copied().unwrap_or_default()];
    into.push(first);
    if payload.len() <= 125 {
        into.push(0x80 | payload.len() as u8);
    } else {
        into.push(0x80 | 126);
        into.extend((payload.len() as u16).to_be_bytes());
    }
    into.extend(mask);
    into.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}
