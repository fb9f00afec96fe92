#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| netobs::fuzzing::netlink_messages(bytes));
