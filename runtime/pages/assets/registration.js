"use strict";
// The page of one registration: flicker, contours, viewer. Without this script the page shows all pictures as well.
(() => {
  const one = (selector) => document.querySelector(selector);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const alignment = one("#alignment");
  const WORDS = { fixed: "fixed", warped: "warped", moving: "moving after the affine" };
  let other = "fixed"; // what flipping goes to
  let timer = null;

  function show(kind) {
    if (kind !== alignment.dataset.shown) other = alignment.dataset.shown;
    alignment.dataset.shown = kind;
    for (const button of all("[data-show]")) button.setAttribute("aria-pressed", String(button.dataset.show === kind));
    if (!timer) one("#now").textContent = WORDS[kind]; // a screen reader must not read every flicker aloud
  }
  function flip() { show(alignment.dataset.shown === "fixed" ? (other === "fixed" ? "warped" : other) : "fixed"); }
  function flicker() {
    if (timer) { clearInterval(timer); timer = null; one("#now").textContent = WORDS[alignment.dataset.shown]; }
    else { one("#now").textContent = "fixed and " + WORDS[alignment.dataset.shown === "fixed" ? other : alignment.dataset.shown] + " in turn"; timer = setInterval(flip, 600); }
    one("[data-act=flicker]").setAttribute("aria-pressed", String(Boolean(timer)));
  }
  function contours() {
    const on = alignment.dataset.contours !== "on";
    alignment.dataset.contours = on ? "on" : "off";
    one("[data-act=contours]").setAttribute("aria-pressed", String(on));
  }
  const ACTS = { flip, flicker, contours };
  for (const button of all("[data-show]")) button.addEventListener("click", () => show(button.dataset.show));
  for (const button of all("[data-act]")) button.addEventListener("click", ACTS[button.dataset.act]);
  for (const stack of all(".stack")) stack.addEventListener("click", flip);
  const KEYS = { 1: () => show("fixed"), 2: () => show("warped"), 3: () => show("moving"), f: flip, a: flicker, c: contours };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(input|select|textarea|canvas)$/i.test(event.target.tagName)) return;
    const act = KEYS[event.key.toLowerCase()];
    if (act) { event.preventDefault(); act(); }
  });

  const download = one("#download");
  download.hidden = false;
  download.addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(JSON.parse(one("#report").textContent), null, 2)], { type: "application/json" }));
    link.download = "report.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });

  // The viewer: NiiVue, unpacked when it is asked for.
  const open = one("#viewer-open"), note = one("#viewer-note"), frame = one("#viewer-frame"), canvas = one("#viewer-canvas");
  function bytes(element) {
    const text = atob(element.textContent.trim()), found = new Uint8Array(text.length);
    for (let n = 0; n < text.length; n++) found[n] = text.charCodeAt(n);
    return found;
  }
  async function loadLibrary() {
    const stream = new Blob([bytes(one("#viewer-library"))]).stream().pipeThrough(new DecompressionStream("gzip"));
    const url = URL.createObjectURL(new Blob([await new Response(stream).arrayBuffer()], { type: "text/javascript" }));
    await new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.onload = resolve;
      script.onerror = () => reject(new Error("the viewer's script was refused"));
      script.src = url;
      document.head.append(script);
    });
    URL.revokeObjectURL(url);
  }
  function hasWebGL2() {
    try { return Boolean(document.createElement("canvas").getContext("webgl2")); } catch { return false; }
  }
  async function start() {
    open.disabled = true;
    if (!hasWebGL2()) {
      note.textContent = "This browser offers no WebGL 2, which the viewer needs. The pictures above show the same images.";
      return;
    }
    note.textContent = "Opening …";
    try {
      await loadLibrary();
      frame.hidden = false;
      const viewer = new niivue.Niivue({ backColor: [0, 0, 0, 1], show3Dcrosshair: true, dragMode: 1, isColorbar: false, logLevel: "silent", isRadiologicalConvention: true, sagittalNoseLeft: true, crosshairWidth: 0.6, crosshairColor: [1, 0.69, 0, 0.8], multiplanarForceRender: false });
      await viewer.attachToCanvas(canvas);
      const sources = Object.fromEntries(all("script.volume").map((element) => [element.dataset.key, element]));
      const volumes = [];
      for (const [key, colour, opacity] of [["fixed", "gray", 1], ["warped", "gray", 0.5], ["labels", "random", 0.35]]) {
        if (!sources[key]) continue;
        const file = new File([bytes(sources[key])], key + ".nii.gz");
        volumes.push(await niivue.NVImage.loadFromFile({ file, name: key + ".nii.gz", colormap: colour, opacity, ...(key === "labels" ? {} : { cal_min: 0, cal_max: 255 }) }));
      }
      for (const volume of volumes) viewer.addVolume(volume);
      const labels = volumes.findIndex((volume) => volume.name.startsWith("labels"));
      one("#viewer-blend").addEventListener("input", (event) => viewer.setOpacity(1, event.target.value / 100));
      if (labels > 0) one("#viewer-labels").addEventListener("input", (event) => viewer.setOpacity(labels, event.target.value / 100));
      const LAYOUTS = { axial: viewer.sliceTypeAxial, coronal: viewer.sliceTypeCoronal, sagittal: viewer.sliceTypeSagittal, multiplanar: viewer.sliceTypeMultiplanar, render: viewer.sliceTypeRender };
      one("#viewer-layout").addEventListener("change", (event) => viewer.setSliceType(LAYOUTS[event.target.value]));
      viewer.setSliceType(viewer.sliceTypeMultiplanar);
      one("#viewer-tools").hidden = false;
      open.hidden = true;
      note.textContent = "";
      frame.dataset.ready = "yes";
    } catch (error) {
      frame.hidden = true;
      note.textContent = "The viewer could not be opened (" + error.message + "). The pictures above show the same images.";
    }
  }
  open.addEventListener("click", start);
})();
