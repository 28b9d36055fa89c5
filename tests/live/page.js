"use strict";
/* What the page does: a chain for what is chosen, shown as it runs, and a slider to go back in it. */
(() => {
  const el = (name) => document.getElementById(`live-${name}`), names = MODEL.config.modalities.label.names;
  const [digit, guidance, steps, time] = ["digit", "guidance", "steps", "time"].map(el);
  let model, seed = 1, chain = [], frames = [], timer;

  /** Numbers in -range..range as grey levels, black to white. */
  function paint(canvas, values, range) {
    const pixels = new ImageData(canvas.width, canvas.height);
    values.forEach((x, i) => pixels.data.set([...new Array(3).fill(127.5 * (1 + x / range)), 255], 4 * i));
    canvas.getContext("2d").putImageData(pixels, 0, 0);
  }

  function show(k) {
    const { t, z, image, chances } = frames[k], best = chances.indexOf(Math.max(...chances));
    paint(el("state"), z, 2);
    paint(el("image"), image, 1);
    chances.forEach((p, i) => el("chances").children[i].style.setProperty("--chance", p));
    const read = `the label head reads ${names[best]} (${(100 * chances[best]).toFixed(0)}%)`;
    el("said").textContent = `Step ${k} of ${steps.value}, t = ${t}: ${read}.`;
    time.value = k;
  }

  function next() {
    const { value, done } = chain.next();
    el("said").setAttribute("aria-busy", !done);
    if (done) return;
    frames.push(value);
    show(frames.length - 1);
    timer = setTimeout(next, 40);
  }

  function start() {
    clearTimeout(timer);
    el("guidance-value").textContent = guidance.value;
    el("steps-value").textContent = steps.value;
    el("seed").textContent = seed;
    guidance.disabled = digit.value === "";
    time.max = steps.value;
    frames = [];
    const label = digit.value === "" ? null : Number(digit.value);
    chain = model.path(normals(seed)(model.size), Number(steps.value), label, Number(guidance.value));
    next();
  }

  function back() {
    clearTimeout(timer);
    frames.push(...chain);
    el("said").setAttribute("aria-busy", false);
    show(Number(time.value));
  }

  names.forEach((name, k) => {
    digit.add(new Option(name, k, false, k === 3));
    const bar = document.createElement("li");
    bar.textContent = name;
    el("chances").append(bar);
  });
  try {
    model = new Model(MODEL);
  } catch (error) {
    el("said").textContent = error.message;
    return;
  }
  for (const control of [digit, guidance, steps]) control.addEventListener("input", start);
  time.addEventListener("input", back);
  el("noise").addEventListener("click", () => {
    seed++;
    start();
  });
  start();
})();
