//! [`Lanes`] for NEON.

use std::arch::aarch64::*;

use super::Lanes;

// SAFETY (all of this file): intrinsics are called under the trait's contract; NEON is part of the base architecture.

impl Lanes for float32x4_t {
    const N: usize = 4;
    const ROWS: usize = 6;
    const WIDE_ROWS: usize = 3;
    const NARROW: usize = 2;

    #[inline(always)]
    unsafe fn zero() -> Self {
        unsafe { vdupq_n_f32(0.0) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { vld1q_f32(from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { vst1q_f32(to, self) }
    }
    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self {
        unsafe { vdupq_n_f32(*from) }
    }
    #[inline(always)]
    unsafe fn fma(self, a: Self, b: Self) -> Self {
        unsafe { vfmaq_f32(self, a, b) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { vaddq_f32(self, other) }
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        unsafe { vsubq_f32(self, other) }
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { vmulq_f32(self, other) }
    }
    #[inline(always)]
    unsafe fn bf16_pair(from: *const u16) -> (Self, Self) {
        unsafe {
            let raw = vreinterpretq_u32_u16(vld1q_u16(from));
            let low = vshlq_n_u32::<16>(raw);
            let high = vandq_u32(raw, vdupq_n_u32(0xffff_0000));
            (vreinterpretq_f32_u32(low), vreinterpretq_f32_u32(high))
        }
    }
    #[inline(always)]
    unsafe fn bf16(from: *const u16) -> Self {
        unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(from))) }
    }
    #[inline(always)]
    unsafe fn prefetch(_from: *const u8) {}
    #[inline(always)]
    unsafe fn prefetch_far(_from: *const u8) {}
}
