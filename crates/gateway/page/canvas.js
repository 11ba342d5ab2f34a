// A picture that grows: a pixel for each id while it is drawn, all pixels when it is done.

/** Colour of an id while nobody knows the palette. */
const UNKNOWN = [128, 128, 140];

export class Sketch {
  constructor(canvas, grid) {
    this.canvas = canvas;
    this.grid = grid;
    this.ids = [];
    this.colours = null;
    canvas.width = canvas.height = grid;
    this.context = canvas.getContext("2d");
  }

  /** Colours came; what is there is drawn again. */
  colour(colours) {
    if (this.done || !colours) return;
    this.colours = colours;
    this.draw(0);
  }

  /** More ids, in order. */
  add(ids) {
    const from = this.ids.length;
    this.ids.push(...ids);
    this.draw(from);
  }

  draw(from) {
    if (this.done) return;
    for (let at = from; at < this.ids.length; at++) {
      const start = 3 * this.ids[at];
      const [r, g, b] = this.colours ? this.colours.subarray(start, start + 3) : UNKNOWN;
      this.context.fillStyle = `rgb(${r} ${g} ${b})`;
      this.context.fillRect(at % this.grid, Math.floor(at / this.grid), 1, 1);
    }
  }

  /** The finished picture, a PNG. */
  async finish(blob) {
    const bitmap = await createImageBitmap(blob);
    this.done = true;
    this.canvas.width = bitmap.width;
    this.canvas.height = bitmap.height;
    this.canvas.classList.add("whole");
    this.context.drawImage(bitmap, 0, 0);
  }
}
