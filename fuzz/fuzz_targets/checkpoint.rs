#![no_main]

// What candle's pickle reader panics on is caught and named; a panic that gets out still ends the process.
libfuzzer_sys::fuzz_target!(init: std::panic::set_hook(Box::new(|_| {})), |data: &[u8]| janus_fuzz::checkpoint(data));
