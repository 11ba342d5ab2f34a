// A form that asks for one thing at a time: its line of status, its stop button, and what is said when something goes wrong.

/**
 * `work(fields, say, signal)` does what the form of `section` asks for; what it throws is shown. Sending again ends what runs.
 * Gives back `say(text, problem)`, which writes the line of status.
 */
export function asks(section, work) {
  const form = section.querySelector("form");
  const status = section.querySelector(".status");
  const stop = section.querySelector(".stop");
  let running = null;

  function say(text, problem = false) {
    status.textContent = text;
    status.classList.toggle("problem", problem);
  }

  async function run() {
    running?.abort();
    const mine = (running = new AbortController());
    stop.hidden = false;
    try {
      await work(new FormData(form), say, mine.signal);
    } catch (error) {
      // Of what was sent again, the newer one speaks.
      if (running !== mine) return;
      if (error.name === "AbortError") return say("Stopped");
      say(error.message, true);
      if (error.status === 401) document.getElementById("key").focus();
    } finally {
      if (running === mine) {
        running = null;
        stop.hidden = true;
      }
    }
  }

  stop.addEventListener("click", () => {
    running?.abort();
    form.querySelector("button.main").focus();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
  return say;
}
