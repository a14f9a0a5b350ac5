//! What Redis sends to a connection that listens.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| journal::properties::pushes(bytes));
