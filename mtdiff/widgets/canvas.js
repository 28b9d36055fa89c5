// A picture of classes to paint with mouse, pen or finger: `value` is the class at each pixel, row by row, or empty.
function render({ model, el }) {
  const names = model.get("names"), colours = model.get("colours"), size = model.get("size"), scale = Math.ceil(192 / size);
  const canvas = document.createElement("canvas"), tools = document.createElement("div"), paint = canvas.getContext("2d");
  let brush = Math.min(1, names.length - 1), pixels = null;
  canvas.width = canvas.height = size * scale;
  canvas.style.cssText = "touch-action: none; cursor: crosshair; border: 1px solid #888";
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `paint ${size} by ${size} pixels of ${names.join(", ")}`);

  function draw() {
    const shown = pixels ?? new Array(size * size).fill(0);
    shown.forEach((k, i) => {
      paint.fillStyle = colours[k];
      paint.fillRect((i % size) * scale, Math.floor(i / size) * scale, scale, scale);
    });
    canvas.style.opacity = pixels ? 1 : 0.5;
  }

  function dab(event) {
    const box = canvas.getBoundingClientRect(), reach = size / 20;
    const x = ((event.clientX - box.left) / box.width) * size, y = ((event.clientY - box.top) / box.height) * size;
    pixels ??= new Array(size * size).fill(0);
    for (let i = 0; i < pixels.length; i++) {
      if (Math.hypot((i % size) + 0.5 - x, Math.floor(i / size) + 0.5 - y) <= reach) pixels[i] = brush;
    }
    draw();
  }

  function tell() {
    model.set("value", pixels ?? []);
    model.save_changes();
  }

  function hear() {
    const value = model.get("value");
    pixels = value.length ? [...value] : null;
    draw();
  }

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    dab(event);
  });
  canvas.addEventListener("pointermove", (event) => event.buttons && dab(event));
  canvas.addEventListener("pointerup", tell);
  canvas.addEventListener("pointercancel", tell);
  names.forEach((name, k) => {
    const button = document.createElement("button");
    button.textContent = name;
    button.style.cssText = `border: 3px solid ${colours[k]}; margin: 2px; font-weight: ${k === brush ? "bold" : "normal"}`;
    button.setAttribute("aria-pressed", k === brush);
    button.onclick = () => {
      brush = k;
      [...tools.children].slice(0, names.length).forEach((other, j) => {
        other.style.fontWeight = j === k ? "bold" : "normal";
        other.setAttribute("aria-pressed", j === k);
      });
    };
    tools.append(button);
  });
  const clear = document.createElement("button");
  clear.textContent = "nothing";
  clear.onclick = () => {
    pixels = null;
    draw();
    tell();
  };
  tools.append(clear);
  model.on("change:value", hear);
  hear();
  el.replaceChildren(canvas, tools);
  return () => model.off("change:value", hear);
}

export default { render };
