//! Rotary position embedding in the `rotate_half` convention of the Llama checkpoints. The table is built once per
//! model by our own f64 functions; a stage applies it to q and k of every row.

use crate::attention::AttnRow;
use crate::isa::simd_fn;
use crate::math;
use crate::pool::{Pool, Shards};

/// cos and sin for every (position, pair).
pub struct RopeTable {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    /// A table for heads of `head_dim` (even) values, base `theta` (`rope_theta`), positions below `max_positions`.
    /// Frequencies and angles are rounded to f32 where the reference does; cos and sin are correctly rounded to f32
    /// up to some 1e-9 of cases.
    ///
    /// # Panics
    /// If `head_dim` is odd or zero.
    pub fn new(head_dim: usize, theta: f32, max_positions: usize) -> Self {
        assert!(head_dim > 0 && head_dim.is_multiple_of(2), "rope: head_dim must be even");
        let half = head_dim / 2;
        let frequencies: Vec<f32> = (0..half)
            .map(|i| {
                let exponent = (2 * i) as f32 / head_dim as f32;
                1.0 / (math::pow(f64::from(theta), f64::from(exponent)) as f32)
            })
            .collect();
        let mut cos = Vec::with_capacity(half * max_positions);
        let mut sin = Vec::with_capacity(half * max_positions);
        for position in 0..max_positions {
            for frequency in &frequencies {
                let (s, c) = math::sin_cos(f64::from(position as f32 * frequency));
                cos.push(c as f32);
                sin.push(s as f32);
            }
        }
        Self { half, cos, sin }
    }

    /// Positions the table covers.
    pub fn max_positions(&self) -> usize {
        self.cos.len() / self.half
    }

    /// Rotates the first `heads * head_dim` values of `x`, one row at `position`.
    ///
    /// # Panics
    /// If `position` is beyond the table or `x` too short.
    pub fn apply(&self, x: &mut [f32], heads: usize, position: usize) {
        let range = position * self.half..(position + 1) * self.half;
        rotate(&mut x[..heads * 2 * self.half], &self.cos[range.clone()], &self.sin[range]);
    }
}

impl RopeTable {
    /// Rotates the first `heads * head_dim` values of every row of `x`, rows `stride` apart, each at its own position;
    /// q and k of a fused product lie side by side, so one call turns both.
    ///
    /// # Panics
    /// If a position is beyond the table or `x` isn't `rows.len()` rows of `stride`.
    pub fn apply_rows(&self, pool: &Pool, x: &mut [f32], stride: usize, heads: usize, rows: &[AttnRow]) {
        let width = heads * 2 * self.half;
        assert!(x.len() == rows.len() * stride && width <= stride, "rope: shapes differ");
        let to = Shards(x.as_mut_ptr());
        let per = (16_384 / width.max(1)).max(1);
        pool.run(rows.len().div_ceil(per), |task| {
            for (index, row) in rows.iter().enumerate().skip(task * per).take(per) {
                // SAFETY: tasks own disjoint rows of `x`.
                self.apply(unsafe { to.part(index * stride, width) }, heads, row.position);
            }
        });
    }
}

simd_fn! {
    fn rotate(x: &mut [f32], cos: &[f32], sin: &[f32]) {
        let half = cos.len();
        for head in x.chunks_exact_mut(2 * half) {
            let (low, high) = head.split_at_mut(half);
            for (((a, b), &cos), &sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
                let (x, y) = (*a, *b);
                *a = x * cos + -y * sin;
                *b = y * cos + x * sin;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn position_zero_changes_nothing_and_norms_stay() {
        let table = RopeTable::new(8, 10_000.0, 32);
        let row: Vec<f32> = (0..16).map(|i| i as f32 - 7.5).collect();
        let mut x = row.clone();
        table.apply(&mut x, 2, 0);
        assert_eq!(x, row);
        table.apply(&mut x, 2, 31);
        let norm = |v: &[f32]| v.iter().map(|x| x * x).sum::<f32>();
        assert!((norm(&x) - norm(&row)).abs() < 1e-3);
        assert_eq!(table.max_positions(), 32);
    }

    #[test]
    fn pairs_are_half_a_head_apart() {
        let table = RopeTable::new(4, 10_000.0, 2);
        let mut x = [1.0, 0.0, 0.0, 0.0];
        table.apply(&mut x, 1, 1);
        assert_eq!(x, [1.0_f64.cos() as f32, 0.0, 1.0_f64.sin() as f32, 0.0]);
    }
}
