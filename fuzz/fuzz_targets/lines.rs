#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| janus_fuzz::lines(data));
