//! Which instruction set the kernels use: detected once, overridable per thread for tests. Every choice gives
//! the same bits, so this is about speed only and never part of the numerics id.

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::Error;

/// An instruction set the kernels have a path for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Plain Rust with `f32::mul_add`: the oracle of the tests, and the only path on other architectures.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ, VL and VNNI.
    Avx512,
    /// aarch64; the generic code compiled with NEON, which is part of the base architecture.
    Neon,
}

impl Isa {
    /// Short lower-case name, as `janus bench` prints it.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Neon => "neon",
        }
    }

    /// Every instruction set this machine can run, the scalar oracle first.
    pub fn available() -> Vec<Isa> {
        let mut all = vec![Isa::Scalar];
        match detect() {
            Isa::Avx512 => all.extend([Isa::Avx2, Isa::Avx512]),
            Isa::Scalar => {}
            other => all.push(other),
        }
        all
    }
}

/// What this process uses, from its first kernel on.
static DETECTED: OnceLock<Isa> = OnceLock::new();

thread_local! {
    static FORCED: Cell<Option<Isa>> = const { Cell::new(None) };
}

/// The instruction set kernels called from this thread use.
pub fn isa() -> Isa {
    FORCED.get().unwrap_or_else(|| *DETECTED.get_or_init(detect))
}

/// Makes all threads use `isa`, before any of them has called a kernel. For measurements.
///
/// # Panics
/// If this machine can't run `isa`, or kernels already use another one.
pub fn choose_isa(wanted: Isa) {
    assert!(Isa::available().contains(&wanted), "this machine cannot run {wanted:?}");
    assert!(*DETECTED.get_or_init(|| wanted) == wanted, "kernels already use {:?}", isa());
}

/// Makes kernels called from this thread use `isa` (`None`: the detected one again). For tests and benches;
/// pool workers follow the thread that called them.
///
/// # Panics
/// If this machine can't run `isa`.
pub fn force_isa(isa: Option<Isa>) {
    if let Some(wanted) = isa {
        assert!(Isa::available().contains(&wanted), "this machine cannot run {wanted:?}");
    }
    FORCED.set(isa);
}

/// What [`widen_first`] was told: 0 nothing, else one more than the answer.
static WIDEN_FIRST: AtomicU8 = AtomicU8::new(0);

/// Whether products of many rows widen a block of bf16 weights once for all rows (`None`: as this CPU likes it). The bits are the
/// same. For tests and benches.
pub fn widen_first(wanted: Option<bool>) {
    WIDEN_FIRST.store(wanted.map_or(0, |wanted| 1 + u8::from(wanted)), Ordering::Relaxed);
}

/// Whether shifts take turns with multiply-adds, so that widening again and again costs more than storing what was widened. They
/// do in Intel's cores, not in AMD's (measured on Sapphire Rapids, and on Zen 5: 5 to 9 % for 16 rows and more).
pub(crate) fn widens_first() -> bool {
    static LIKED: OnceLock<bool> = OnceLock::new();
    match WIDEN_FIRST.load(Ordering::Relaxed) {
        0 => *LIKED.get_or_init(|| !is_amd()),
        told => told == 2,
    }
}

#[cfg(target_arch = "x86_64")]
fn is_amd() -> bool {
    let vendor = std::arch::x86_64::__cpuid(0);
    [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD"
}

#[cfg(not(target_arch = "x86_64"))]
fn is_amd() -> bool {
    false
}

pub(crate) fn forced() -> Option<Isa> {
    FORCED.get()
}

pub(crate) fn set_forced(isa: Option<Isa>) {
    FORCED.set(isa);
}

/// Defines a function whose body is compiled once per instruction set and chosen at run time. The body is plain Rust
/// with explicit `mul_add`, which the compiler may vectorise but never reassociate: same bits everywhere.
macro_rules! simd_fn {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2($($arg: $ty),*) $(-> $ret)? {
                body($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
            fn avx512($($arg: $ty),*) $(-> $ret)? {
                body($($arg),*)
            }
            match $crate::isa::isa() {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: isa() names only instruction sets this CPU has.
                $crate::isa::Isa::Avx2 => unsafe { avx2($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                $crate::isa::Isa::Avx512 => unsafe { avx512($($arg),*) },
                _ => body($($arg),*),
            }
        }
    };
}
pub(crate) use simd_fn;

/// Refuses a machine without hardware fused multiply-add, by name.
///
/// # Errors
/// [`Error::NoFma`] with the CPU's model name.
pub fn check_cpu() -> Result<Isa, Error> {
    match detect() {
        Isa::Scalar => Err(Error::NoFma { cpu: cpu_name() }),
        found => Ok(found),
    }
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Isa {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni");
    match (avx2, avx512) {
        (true, true) => Isa::Avx512,
        (true, false) => Isa::Avx2,
        _ => Isa::Scalar,
    }
}

#[cfg(target_arch = "aarch64")]
fn detect() -> Isa {
    Isa::Neon
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn detect() -> Isa {
    Isa::Scalar
}

fn cpu_name() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

/// Checks what promise 1 takes for granted about this thread: rounding to nearest, denormals neither flushed nor
/// read as zero. Called once at start by every process that computes.
///
/// # Errors
/// [`Error::FloatEnvironment`] naming the setting.
pub fn check_float_env() -> Result<(), Error> {
    use std::hint::black_box;
    let tiny = f32::from_bits(1);
    if black_box(f32::MIN_POSITIVE) * black_box(0.5) == 0.0 {
        return Err(Error::FloatEnvironment { what: "denormal results are flushed to zero" });
    }
    if black_box(tiny) * black_box(8_388_608.0) == 0.0 {
        return Err(Error::FloatEnvironment { what: "denormal inputs are read as zero" });
    }
    let eps = black_box(f32::EPSILON / 4.0);
    let one = black_box(1.0_f32);
    if one + eps != 1.0 || -one - eps != -1.0 || one - black_box(f32::EPSILON / 8.0) != 1.0 {
        return Err(Error::FloatEnvironment { what: "rounding is not to nearest" });
    }
    Ok(())
}

/// [`check_float_env`], for those who can't go on.
///
/// # Panics
/// If the environment is altered.
pub fn assert_float_env() {
    if let Err(error) = check_float_env() {
        panic!("{error}");
    }
}
