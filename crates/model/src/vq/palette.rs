//! What codes look like by themselves: a linear map from a looked-up code to the mean colour of its cell, fitted by least
//! squares to a few real decodes. With it, ids are shown as they are drawn, a pixel for each, in microseconds.
//!
//! A cell's colour hangs on its neighbours too, so the decodes are of grids of small blocks of one code each: what a block
//! looks like is mostly its own. Their codes are spread evenly over the codebook.

use janus_kernels::Pool;

use super::VqDecoder;
use crate::error::{Error, Result};

/// Blocks for each unknown of the map.
const BLOCKS_PER_UNKNOWN: usize = 8;
/// Fewest and most decodes of a fit: each one is a picture's worth of work.
const DECODES: (usize, usize) = (2, 8);
/// Widest code that is mapped; those of Janus have 8 values.
const MAX_DIM: usize = 256;
/// Keeps the equations solvable where a codebook spans fewer dimensions than it has, relative to their mean diagonal.
const RIDGE: f64 = 1e-6;

/// A fit in progress: one decode a step, so that whoever owns the decoder can do something else between two.
pub struct PaletteFit {
    /// Still to be decoded.
    grids: Vec<Vec<u32>>,
    /// `sum x x^T` over all cells, `x` being a cell's code and a 1.
    squares: Vec<f64>,
    /// `sum x rgb^T`.
    colours: Vec<[f64; 3]>,
}

impl PaletteFit {
    /// The fit of `decoder`'s codebook; nothing is decoded yet.
    ///
    /// # Errors
    /// Codes that are too wide to be mapped.
    pub fn new(decoder: &VqDecoder) -> Result<Self> {
        let (codes, dim) = (decoder.codebook().len(), decoder.codebook().dim());
        if dim > MAX_DIM {
            return Err(Error::Argument(format!("a palette is for codes of at most {MAX_DIM} values, not {dim}")));
        }
        let unknowns = dim + 1;
        let grids = grids(codes, decoder.grid(), unknowns);
        Ok(PaletteFit { grids, squares: vec![0.0; unknowns * unknowns], colours: vec![[0.0; 3]; unknowns] })
    }

    /// Decodes one more grid, unless `stop` says so meanwhile; false when there are no more.
    ///
    /// # Errors
    /// The decoder's.
    pub fn step(&mut self, decoder: &VqDecoder, pool: &Pool, stop: impl Fn() -> bool) -> Result<bool> {
        let Some(ids) = self.grids.last() else { return Ok(false) };
        let Some(pixels) = decoder.decode_unless(pool, ids, stop)? else { return Ok(true) };
        let means = cell_means(&pixels, decoder.grid());
        for (id, rgb) in self.grids.pop().unwrap_or_default().into_iter().zip(means) {
            let code = decoder.codebook().row(id).unwrap_or_default();
            self.add(code, rgb);
        }
        Ok(!self.grids.is_empty())
    }

    fn add(&mut self, code: &[f32], rgb: [f64; 3]) {
        let unknowns = self.colours.len();
        let x: Vec<f64> = code.iter().map(|v| f64::from(*v)).chain([1.0]).collect();
        for (i, a) in x.iter().enumerate() {
            for (j, b) in x.iter().enumerate() {
                self.squares[i * unknowns + j] += a * b;
            }
            for c in 0..3 {
                self.colours[i][c] += a * rgb[c];
            }
        }
    }

    /// 3 bytes of RGB for each code.
    pub fn finish(self, decoder: &VqDecoder) -> Vec<u8> {
        let map = solve(self.squares, self.colours);
        let codebook = decoder.codebook();
        let mut palette = Vec::with_capacity(3 * codebook.len());
        for code in codebook.rows().chunks_exact(codebook.dim()) {
            for c in 0..3 {
                let bias = map.last().map_or(0.0, |b| b[c]);
                let value = code.iter().zip(&map).fold(bias, |sum, (v, m)| sum + f64::from(*v) * m[c]);
                palette.push(((value + 1.0) * 127.5).round().clamp(0.0, 255.0) as u8);
            }
        }
        palette
    }
}

/// Grids of square blocks; the codes of successive blocks are golden steps around the codebook, which leave no part of
/// it out for long.
fn grids(codes: usize, grid: usize, unknowns: usize) -> Vec<Vec<u32>> {
    let side = if grid >= 18 { 3 } else { 2.min(grid) };
    let across = grid.div_ceil(side);
    let blocks = across * across;
    let count = (BLOCKS_PER_UNKNOWN * unknowns).div_ceil(blocks).clamp(DECODES.0, DECODES.1);
    let code = |block: usize| ((block as f64 * 0.618_033_988_749_895).fract() * codes as f64) as u32;
    let cell = |g: usize, at: usize| code(g * blocks + (at / grid / side) * across + at % grid / side);
    (0..count).map(|g| (0..grid * grid).map(|at| cell(g, at)).collect()).collect()
}

/// Mean of each cell of a picture `[size, size, 3]`, row-major.
fn cell_means(pixels: &[f32], grid: usize) -> Vec<[f64; 3]> {
    let size = (pixels.len() / 3).isqrt();
    let cell = size / grid;
    let mut means = vec![[0.0; 3]; grid * grid];
    for (at, pixel) in pixels.chunks_exact(3).enumerate() {
        let (row, column) = (at / size / cell, at % size / cell);
        for c in 0..3 {
            means[row * grid + column][c] += f64::from(pixel[c].clamp(-1.0, 1.0)) / (cell * cell) as f64;
        }
    }
    means
}

/// Solves `squares * map = colours` by Cholesky's method; the matrix is positive with the ridge.
fn solve(mut a: Vec<f64>, mut b: Vec<[f64; 3]>) -> Vec<[f64; 3]> {
    let n = b.len();
    let ridge = RIDGE * (0..n).map(|i| a[i * n + i]).sum::<f64>() / n as f64 + f64::MIN_POSITIVE;
    for i in 0..n {
        for j in 0..=i {
            let dot: f64 = (0..j).map(|k| a[i * n + k] * a[j * n + k]).sum();
            let value = a[i * n + j] - dot;
            a[i * n + j] = if i == j { (value + ridge).max(ridge).sqrt() } else { value / a[j * n + j] };
        }
    }
    for c in 0..3 {
        for i in 0..n {
            let dot: f64 = (0..i).map(|k| a[i * n + k] * b[k][c]).sum();
            b[i][c] = (b[i][c] - dot) / a[i * n + i];
        }
        for i in (0..n).rev() {
            let dot: f64 = (i + 1..n).map(|k| a[k * n + i] * b[k][c]).sum();
            b[i][c] = (b[i][c] - dot) / a[i * n + i];
        }
    }
    b
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_that_is_linear_is_found() {
        let code = |i: u32| [(i as f64 * 0.7).sin(), (i as f64 * 1.3).cos(), 1.0];
        let truth = [[0.5, -0.25, 0.0], [0.1, 0.2, -0.3], [0.0, 0.4, 0.05]];
        let (mut squares, mut colours) = (vec![0.0; 9], vec![[0.0; 3]; 3]);
        for i in 0..40 {
            let x = code(i);
            for r in 0..3 {
                (0..3).for_each(|k| squares[r * 3 + k] += x[r] * x[k]);
                (0..3).for_each(|c| colours[r][c] += x[r] * (0..3).map(|k| x[k] * truth[k][c]).sum::<f64>());
            }
        }
        let found = solve(squares, colours);
        for (found, truth) in found.iter().flatten().zip(truth.iter().flatten()) {
            assert!((found - truth).abs() < 1e-4, "{found} is not {truth}");
        }
    }

    #[test]
    fn grids_reach_all_parts_of_a_codebook_and_have_no_id_outside() {
        for (codes, grid, dim) in [(16384, 24, 8), (512, 8, 8), (64, 4, 8), (3, 1, 2)] {
            let grids = grids(codes, grid, dim + 1);
            let mut ids: Vec<u32> = grids.concat();
            assert!(grids.len() <= DECODES.1 && ids.len() == grids.len() * grid * grid);
            ids.sort_unstable();
            ids.dedup();
            assert!(ids.iter().all(|id| (*id as usize) < codes));
            if grid > 1 {
                let gaps = ids.windows(2).map(|w| w[1] - w[0]).max().unwrap();
                assert!((gaps as usize) < codes / 8, "{codes} codes, {gaps} in a row are left out");
            }
        }
    }

    #[test]
    fn a_cell_is_the_mean_of_its_pixels() {
        let pixels: Vec<f32> = (0..16).flat_map(|i| [if i % 4 < 2 { 1.0 } else { -1.0 }, (i / 8) as f32, 9.0]).collect();
        assert_eq!(cell_means(&pixels, 2), [[1.0, 0.0, 1.0], [-1.0, 0.0, 1.0], [1.0, 1.0, 1.0], [-1.0, 1.0, 1.0]]);
    }
}
