//! exp, erf, sigmoid (f32) and sin, cos, pow (f64) of our own: the same bits on every machine, scalar or SIMD.
//! The f32 ones are branch-free so that loops over them vectorise; `rows`, `attention` and `sample` call them.
//! The f64 ones serve tables built once (`rope`).

/// 1.5 * 2^23: adding it rounds a small f32 to the nearest integer, ties to even.
const ROUND: f32 = 12_582_912.0;

/// e^x, within 1 ulp where the result is normal; 0 below -104, infinite above 88.73, NaN stays NaN.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -104.0 { -104.0 } else { x };
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    // ln 2 in two parts; the first has 12 trailing zero bits, so n * LN2_HI is exact inside the fma either way.
    let r = n.mul_add(-0.693_145_75, x);
    let r = n.mul_add(-1.428_606_8e-6, r);
    // Taylor to r^7 on |r| <= 0.3466: truncation below 0.1 ulp.
    let p = (1.0_f32 / 5040.0).mul_add(r, 1.0 / 720.0);
    let p = p.mul_add(r, 1.0 / 120.0);
    let p = p.mul_add(r, 1.0 / 24.0);
    let p = p.mul_add(r, 1.0 / 6.0);
    let p = p.mul_add(r, 0.5);
    let p = p.mul_add(r, 1.0);
    let p = p.mul_add(r, 1.0);
    // 2^n in two steps, so that denormal results round once and 2^128 overflows to infinity.
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    p * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// erf(x), within 2 ulp.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let t = x.abs();
    // |x| <= 0.92: x + x * P(x^2), interpolated at Chebyshev nodes.
    let s = x * x;
    let p = 8.138_705e-5_f32.mul_add(s, -8.086_459e-4);
    let p = p.mul_add(s, 5.195_948e-3);
    let p = p.mul_add(s, -2.685_730_2e-2);
    let p = p.mul_add(s, 1.128_365_7e-1);
    let p = p.mul_add(s, -3.761_263_2e-1);
    let p = p.mul_add(s, 1.283_791_7e-1);
    let near = p.mul_add(x, x);
    // Beyond: 1 - e^-Q(t) with Q(t) = -ln erfc(t), interpolated on [0.9, 4]; from 4 on erf is 1 in f32.
    let t = if t > 4.0 { 4.0 } else { t };
    let q = (-1.643_063_7e-6_f32).mul_add(t, 4.616_386e-5);
    let q = q.mul_add(t, -5.975_857e-4);
    let q = q.mul_add(t, 4.762_626e-3);
    let q = q.mul_add(t, -2.642_763_8e-2);
    let q = q.mul_add(t, 1.100_871_6e-1);
    let q = q.mul_add(t, 6.318_239e-1);
    let q = q.mul_add(t, 1.130_231);
    let q = q.mul_add(t, -3.185_396_5e-4);
    let far = (1.0 - exp(-q)).copysign(x);
    if t <= 0.92 { near } else { far }
}

/// x / (1 + e^-x): SiLU, which the VQ decoder calls swish.
#[inline(always)]
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// x * (1 + erf(x / sqrt 2)) / 2: the exact GELU of the generation heads and SigLIP's aligner.
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// sin and cos of an angle of at most some 2^20 in size, to about 1e-16.
pub fn sin_cos(x: f64) -> (f64, f64) {
    let n = (x * std::f64::consts::FRAC_2_PI).round_ties_even();
    let r = n.mul_add(-std::f64::consts::FRAC_PI_2, x);
    // What pi/2 exceeds its f64 by.
    let r = n.mul_add(-6.123_233_995_736_766e-17, r);
    let s = r * r;
    let (mut sin, mut cos) = (0.0_f64, 0.0_f64);
    // Taylor to r^19 and r^18 on |r| <= pi/4, by Horner from the last term.
    for k in (1..=9).rev() {
        let k = f64::from(k);
        sin = (1.0 + sin) * (-s / ((2.0 * k) * (2.0 * k + 1.0)));
        cos = (1.0 + cos) * (-s / ((2.0 * k - 1.0) * (2.0 * k)));
    }
    let (sin, cos) = (sin.mul_add(r, r), 1.0 + cos);
    match (n as i64).rem_euclid(4) {
        0 => (sin, cos),
        1 => (cos, -sin),
        2 => (-sin, -cos),
        _ => (-cos, sin),
    }
}

/// base^exponent for a positive normal base and a moderate exponent, to about 1e-15.
pub fn pow(base: f64, exponent: f64) -> f64 {
    exp64(exponent * ln64(base))
}

fn ln64(x: f64) -> f64 {
    let bits = x.to_bits();
    let mut e = ((bits >> 52) as i64) - 1023;
    let mut m = f64::from_bits((bits & 0x000f_ffff_ffff_ffff) | 0x3ff0_0000_0000_0000);
    if m > std::f64::consts::SQRT_2 {
        m *= 0.5;
        e += 1;
    }
    // ln m = 2 atanh(s), |s| <= 0.172: the series to s^25.
    let s = (m - 1.0) / (m + 1.0);
    let z = s * s;
    let mut sum = 0.0_f64;
    for k in (0..=12).rev() {
        sum = sum.mul_add(z, 1.0 / f64::from(2 * k + 1));
    }
    (e as f64).mul_add(std::f64::consts::LN_2, 2.0 * s * sum)
}

fn exp64(x: f64) -> f64 {
    let n = (x * std::f64::consts::LOG2_E).round_ties_even();
    let r = n.mul_add(-std::f64::consts::LN_2, x);
    let r = n.mul_add(-2.319_046_813_846_3e-17, r);
    let mut sum = 1.0_f64;
    for k in (1..=15).rev() {
        sum = sum.mul_add(r / f64::from(k), 1.0);
    }
    sum * f64::from_bits(((n as i64 + 1023) as u64) << 52)
}

/// The one reduction tree: 16 interleaved lanes folded 8, 4, 2, 1.
#[inline(always)]
pub(crate) fn fold16(mut lanes: [f32; 16]) -> f32 {
    let mut width = 8;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Sum over `x` of steps `lane[i % 16] = step(lane, x[i])`, folded by [`fold16`].
#[inline(always)]
pub(crate) fn reduce16(x: &[f32], step: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; 16];
    let mut chunks = x.chunks_exact(16);
    for chunk in &mut chunks {
        for lane in 0..16 {
            lanes[lane] = step(lanes[lane], chunk[lane]);
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane = step(*lane, value);
    }
    fold16(lanes)
}

/// Largest value (negative infinity when empty); NaN are skipped.
#[inline(always)]
pub(crate) fn max(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; 16];
    let mut chunks = x.chunks_exact(16);
    for chunk in &mut chunks {
        for lane in 0..16 {
            lanes[lane] = larger(lanes[lane], chunk[lane]);
        }
    }
    let tail = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, larger);
    lanes.iter().copied().fold(tail, larger)
}

/// Largest size among a block's values.
#[inline(always)]
pub(crate) fn largest<const N: usize>(x: &[f32; N]) -> f32 {
    let mut sizes = [0.0; N];
    for (size, x) in sizes.iter_mut().zip(x) {
        *size = x.abs();
    }
    max(&sizes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance in units of the last place of the f32 nearest to `exact`.
    fn ulps(got: f32, exact: f64) -> f64 {
        let near = (exact as f32).abs().max(f32::MIN_POSITIVE);
        let ulp = f64::from(f32::from_bits(near.to_bits() + 1)) - f64::from(near);
        (f64::from(got) - exact).abs() / ulp
    }

    /// erf by its series (small) or continued fraction (large), in f64.
    fn erf64(x: f64) -> f64 {
        let t = x.abs();
        let value = if t < 2.5 {
            let (mut term, mut sum) = (t, t);
            for n in 1..80 {
                term *= -t * t / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            2.0 / std::f64::consts::PI.sqrt() * sum
        } else {
            let mut f = 0.0;
            for n in (1..60).rev() {
                f = f64::from(n) / 2.0 / (t + f);
            }
            1.0 - (-t * t).exp() / ((t + f) * std::f64::consts::PI.sqrt())
        };
        value.copysign(x)
    }

    #[test]
    fn exp_is_within_one_ulp() {
        let mut worst = 0.0_f64;
        for i in -873_000..=887_000 {
            let x = i as f32 * 1e-4;
            worst = worst.max(ulps(exp(x), f64::from(x).exp()));
        }
        assert!(worst <= 1.0, "{worst}");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-200.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(88.8), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(-100.0), (-100.0_f64).exp() as f32);
    }

    #[test]
    fn erf_is_within_two_ulps() {
        let mut worst = (0.0_f64, 0.0);
        for i in -60_000..=60_000 {
            let x = i as f32 * 1e-4;
            let off = ulps(erf(x), erf64(f64::from(x)));
            if off > worst.0 {
                worst = (off, x);
            }
        }
        assert!(worst.0 <= 2.0, "{worst:?}");
        assert_eq!(erf(9.0), 1.0);
        assert_eq!(erf(-9.0), -1.0);
        assert!(erf(f32::NAN).is_nan());
    }

    #[test]
    fn sin_cos_and_pow_agree_with_f64() {
        for i in 0..200_000 {
            let x = f64::from(i) * 0.0817;
            let (sin, cos) = sin_cos(x);
            assert!((sin - x.sin()).abs() < 4e-16 && (cos - x.cos()).abs() < 4e-16, "{x}");
        }
        for i in 0..64 {
            let e = f64::from(i) / 64.0;
            for base in [10_000.0_f64, 500_000.0, 1_000_000.0] {
                assert!((pow(base, e) / base.powf(e) - 1.0).abs() < 4e-15);
            }
        }
    }

    #[test]
    fn portable_vectors() {
        let got: Vec<u32> = [exp(1.0), exp(-3.7), erf(0.5), erf(1.5), gelu(-0.75), silu(2.5)].map(f32::to_bits).into();
        assert_eq!(got, PORTABLE, "{got:#010x?}");
    }
    const PORTABLE: [u32; 6] = [0x402d_f854, 0x3cca_88fd, 0x3f05_3f7b, 0x3f77_52ab, 0xbe2e_0cc0, 0x4013_dcd9];
}
