//! Frames from a browser.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| protocol::properties::frames_up(bytes));
