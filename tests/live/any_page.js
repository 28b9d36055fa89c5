"use strict";
/* What the page of scenes does: what is ticked is given, all else is drawn as the chain runs; values can be chosen, painted,
   or kept as they were drawn. */
(() => {
  const el = (name) => document.getElementById(`live-${name}`), { label, caption } = MODEL.config.modalities;
  const [guidance, steps, time, said, brush] = ["guidance", "steps", "time", "said", "brush"].map(el);
  const words = [...el("caption").querySelectorAll("select")], values = {};
  let model, seed = 1, chain = [], frames = [], timer;

  const box = (name) => document.querySelector(`.live input[data-given=${name}]`);
  const best = (chances) => chances.indexOf(Math.max(...chances));
  const limited = (mean) => mean.map((x) => Math.min(1, Math.max(-1, x)));
  const atPixel = (chances, i) => PALETTE.map((_, k) => chances[k * model.area + i]);

  /** A picture of channels in -range..range, black to white; one channel is grey. */
  function paint(name, pixels, range = 1) {
    const canvas = el(name), area = canvas.width * canvas.height, shown = new ImageData(canvas.width, canvas.height);
    const channel = (c) => (pixels.length < 3 * area ? 0 : c * area);
    for (let i = 0; i < area; i++) {
      shown.data.set([...[0, 1, 2].map((c) => 127.5 * (1 + pixels[channel(c) + i] / range)), 255], 4 * i);
    }
    canvas.getContext("2d").putImageData(shown, 0, 0);
  }

  /** The value that the heads say: a mean, or the most likely class or word. */
  const read = {
    image: limited,
    depth: limited,
    segmentation: (chances) => Array.from({ length: model.area }, (_, i) => best(atPixel(chances, i))),
    label: (chances) => [best(chances)],
    caption: (chances) => PLACES.map((ids, l) => ids[best(ids.map((id) => chances[l * caption.vocabulary.length + id]))]),
  };
  const put = {
    image: (value) => paint("image", value),
    depth: (value) => paint("depth", value),
    segmentation: (value) => paint("segmentation", [0, 1, 2].flatMap((c) => value.map((k) => PALETTE[k][c]))),
    label: ([k]) => (el("label").value = k),
    caption: (ids) => words.forEach((select, l) => (select.value = ids[l])),
  };

  function show(k) {
    const { t, z, said: laws } = frames[k], open = Object.keys(model.modalities).filter((name) => !box(name).checked);
    paint("state", z, 2);
    for (const name of open) put[name]((values[name] = read[name](laws[name])));
    const drawn = open.join(", ");
    said.textContent = `Step ${k} of ${steps.value}, t = ${t}: ${drawn ? `drawn are ${drawn}` : "all is given"}.`;
    time.value = k;
  }

  function next() {
    const { value, done } = chain.next();
    said.setAttribute("aria-busy", !done);
    if (done) return;
    frames.push(value);
    show(frames.length - 1);
    timer = setTimeout(next, 0);
  }

  function start() {
    clearTimeout(timer);
    el("guidance-value").textContent = guidance.value;
    el("steps-value").textContent = steps.value;
    el("seed").textContent = seed;
    time.max = steps.value;
    frames = [];
    const given = Object.fromEntries(Object.entries(values).filter(([name]) => box(name).checked)), draw = normals(seed);
    const noise = model.config.sampler === "ddpm" ? draw : null;
    chain = model.path(draw(model.size), Number(steps.value), given, Number(guidance.value), noise);
    said.setAttribute("aria-busy", true);
    timer = setTimeout(next, 0);
  }

  function back() {
    clearTimeout(timer);
    frames.push(...chain);
    said.setAttribute("aria-busy", false);
    show(Number(time.value));
  }

  /** Give a value of the reader's own. */
  function give(name, value) {
    put[name]((values[name] = value));
    box(name).checked = true;
  }

  function dab(event) {
    const canvas = el("segmentation"), place = canvas.getBoundingClientRect(), n = canvas.width;
    const x = ((event.clientX - place.left) / place.width) * n, y = ((event.clientY - place.top) / place.height) * n;
    const near = (i) => Math.hypot((i % n) + 0.5 - x, Math.floor(i / n) + 0.5 - y) <= 1;
    give("segmentation", values.segmentation.map((k, i) => (near(i) ? Number(brush.value) : k)));
  }

  words.forEach((select, l) => PLACES[l].forEach((id) => select.add(new Option(caption.vocabulary[id], id))));
  label.names.forEach((name, k) => el("label").add(new Option(name, k)));
  MODEL.config.modalities.segmentation.names.forEach((name, k) => brush.add(new Option(name, k, false, k === 1)));
  try {
    model = new Scenes(MODEL);
  } catch (error) {
    said.textContent = error.message;
    return;
  }
  for (const control of [guidance, steps, ...document.querySelectorAll(".live input[data-given]")]) {
    control.addEventListener("input", start);
  }
  time.addEventListener("input", back);
  el("noise").addEventListener("click", () => {
    seed++;
    start();
  });
  el("label").addEventListener("input", () => {
    give("label", [Number(el("label").value)]);
    start();
  });
  words.forEach((select) => select.addEventListener("input", () => {
    give("caption", words.map((each) => Number(each.value)));
    start();
  }));
  el("empty").addEventListener("click", () => give("segmentation", new Array(model.area).fill(0)));
  el("segmentation").addEventListener("pointerdown", (event) => {
    clearTimeout(timer);
    event.target.setPointerCapture(event.pointerId);
    dab(event);
  });
  el("segmentation").addEventListener("pointermove", (event) => event.buttons && dab(event));
  el("segmentation").addEventListener("pointerup", start);
  values.segmentation = new Array(model.area).fill(0);
  give("caption", ["grey", "large", "red", "circle"].map((word) => caption.vocabulary.indexOf(word)));
  start();
})();
