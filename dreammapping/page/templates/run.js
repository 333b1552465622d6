// The page of a run: its 3D view, and the buttons beside it.

function start() {
  const canvas = document.getElementById("view");
  if (!canvas) return;
  const about = JSON.parse(document.getElementById("about").textContent);
  let splats;
  try {
    splats = new Splats(canvas, about, decoded(document.getElementById("splats").textContent));
  } catch (error) {
    canvas.hidden = true;
    document.getElementById("no-view").hidden = false;
    document.querySelectorAll(".controls button, .controls select").forEach((control) => { control.disabled = true; });
    return;
  }
  canvas.style.aspectRatio = `${about.width} / ${about.height}`;
  const alone = location.hash === "#alone" && window.parent !== window;
  const turn = document.getElementById("turn"), background = document.getElementById("background");
  background.value = String(about.background);
  let due = false, turning = false, last = 0;

  function draw(now) {
    due = false;
    const scale = Math.min(window.devicePixelRatio || 1, 2), box = canvas.getBoundingClientRect();
    const width = Math.max(Math.round(box.width * scale), 1), height = Math.max(Math.round(box.height * scale), 1);
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, {width, height});
    if (turning) {
      const seconds = Math.min((now - last) / 1000, 0.1);
      last = now;
      orbit.turn(24 * seconds, 0);
    }
    splats.draw(orbit.pose, Array(3).fill(Number(background.value)));
  }
  const ask = () => {
    if (!due) requestAnimationFrame(draw);
    due = true;
  };
  function setTurning(on) {
    turning = on;
    last = performance.now();
    turn.setAttribute("aria-pressed", String(on));
    ask();
  }
  const orbit = new Orbit(canvas, {polar: about.polar, radius: about.radius}, ask);
  splats.onrestored = ask;
  turn.addEventListener("click", () => setTurning(!turning));
  background.addEventListener("change", ask);
  for (const button of document.querySelectorAll("[data-azimuth]")) {
    button.addEventListener("click", () => {
      setTurning(false);
      orbit.reset(false);
      orbit.azimuth = Number(button.dataset.azimuth);
      orbit.polar = Number(button.dataset.polar ?? about.polar);
      ask();
    });
  }
  document.getElementById("save").addEventListener("click", () => {
    draw(last);  // what was drawn before is gone from the buffer
    const link = document.createElement("a");
    link.download = "view.png";
    link.href = canvas.toDataURL("image/png");
    link.click();
  });
  new ResizeObserver(ask).observe(canvas);

  if (alone) {  // side by side with others in a gallery: cameras move together
    document.documentElement.classList.add("alone");
    const pose = () => ({azimuth: orbit.azimuth, polar: orbit.polar, nearness: orbit.radius / orbit.home.radius});
    orbit.onmoved = () => { orbit.tells = true; };
    orbit.changed = () => {
      ask();
      if (orbit.tells) window.parent.postMessage({pose: pose()}, "*");
    };
    window.addEventListener("message", (event) => {
      const told = event.data?.pose;
      if (event.source !== window.parent || !told || !Object.values(told).every(Number.isFinite)) return;
      orbit.tells = false;
      orbit.azimuth = told.azimuth;
      orbit.polar = clamp(told.polar, 1, 179);
      orbit.radius = orbit.home.radius * told.nearness;
      ask();
    });
  } else {
    orbit.onmoved = () => setTurning(false);
  }
  ask();
}

start();
