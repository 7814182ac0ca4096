"use strict";
// The report's viewer: niivue shows two embedded volumes, the table's controls set colours and opacities.
(() => {
  const byId = (id) => document.getElementById(id);
  const rows = [...document.querySelectorAll("#structures tbody tr")];
  const page = JSON.parse(byId("page-data").textContent);
  const names = new Map(page.structures.map((item) => [item.value, item.name]));
  let viewer, scan, labels;

  const state = (name, text) => {
    document.body.dataset.state = name;
    byId("message").textContent = text;
  };

  // One alpha per structure: its own slider, times the slider of all, or nothing when switched off.
  const colourTable = () => {
    const table = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: [""] };
    page.structures.forEach((item, index) => {
      const [shown, strength] = rows[index].querySelectorAll("input");
      const alpha = shown.checked ? (strength.value / 100) * (byId("opacity").value / 100) : 0;
      const [red, green, blue] = item.colour;
      table.R.push(red);
      table.G.push(green);
      table.B.push(blue);
      table.A.push(Math.round(255 * alpha));
      table.I.push(item.value);
      table.labels.push(item.name);
    });
    return table;
  };

  const recolour = () => {
    labels.setColormapLabel(colourTable());
    update();
    const shown = rows.filter((row) => row.querySelector("input").checked).length;
    byId("all").checked = shown === rows.length;
    byId("all").indeterminate = shown > 0 && shown < rows.length;
  };

  const grey = (low, high) => {
    if (!(low < high)) return;
    scan.cal_min = low;
    scan.cal_max = high;
    update();
    showWindow();
  };

  const showWindow = () => {
    byId("low").value = Number(scan.cal_min.toPrecision(4));
    byId("high").value = Number(scan.cal_max.toPrecision(4));
  };

  const VIEWS = { axial: 0, coronal: 1, sagittal: 2, multi: 3, "3d": 4 }; // niivue's SLICE_TYPE

  const choose = (button) => {
    document.querySelectorAll("[data-view]").forEach((other) => other.setAttribute("aria-pressed", other === button));
    viewer.setSliceType(VIEWS[button.dataset.view]);
  };

  // niivue speaks RAS; dropgen-rt, like DICOM, LPS.
  const readOut = (place) => {
    const [right, anterior, superior] = place.mm;
    const value = place.values.length > 1 ? place.values[1].value : 0;
    const position = [-right, -anterior, superior].map((mm) => mm.toFixed(1)).join(", ");
    const structure = names.get(Math.round(value)) || "no structure";
    byId("readout").textContent = `${position} mm (left, posterior, superior) · intensity ${Number(place.values[0].value.toPrecision(5))} · ${structure}`;
  };

  const goTo = (item) => {
    if (!item.middle_mm) return;
    const [left, posterior, superior] = item.middle_mm;
    viewer.scene.crosshairPos = viewer.mm2frac([-left, -posterior, superior], 0, true);
    viewer.createOnLocationChange();
    viewer.drawScene();
  };

  const listen = () => {
    rows.forEach((row, index) => {
      row.querySelectorAll("input").forEach((input) => input.addEventListener("input", recolour));
      row.querySelector("button").addEventListener("click", () => goTo(page.structures[index]));
    });
    byId("all").addEventListener("input", (event) => {
      rows.forEach((row) => (row.querySelector("input").checked = event.target.checked));
      recolour();
    });
    byId("opacity").addEventListener("input", recolour);
    byId("outline").addEventListener("input", (event) => {
      viewer.opts.atlasOutline = event.target.checked ? 1 : 0;
      update();
    });
    byId("scan3d").addEventListener("input", redraw);
    for (const id of ["low", "high"]) {
      byId(id).addEventListener("change", () => grey(Number(byId("low").value), Number(byId("high").value)));
    }
    byId("reset").addEventListener("click", () => grey(...page.window));
    document.querySelectorAll("[data-view]").forEach((button) => button.addEventListener("click", () => choose(button)));
  };

  // In 3D the head would hide what is inside it: the scan has a strength of its own there.
  const redraw = () => {
    const shader = viewer.renderShader;
    shader.use(viewer.gl);
    viewer.gl.uniform1f(shader.uniforms.backOpacity, byId("scan3d").value / 100);
    viewer.drawScene();
  };

  const update = () => {
    viewer.updateGLVolume();
    redraw();
  };

  const open = async () => {
    if (!document.createElement("canvas").getContext("webgl2")) {
      state("no-webgl", "This browser has no WebGL 2, so that the viewer cannot run. The picture is below.");
      return;
    }
    viewer = new niivue.Niivue({
      backColor: [0.06, 0.06, 0.07, 1],
      crosshairColor: [0.9, 0.9, 0.9, 0.6],
      crosshairWidth: 0.8,
      crosshairWidthUnit: "mm",
      isRadiologicalConvention: true,
      fontColor: [0.85, 0.85, 0.85, 1],
      sagittalNoseLeft: true,
      multiplanarLayout: 2, // niivue's GRID
      multiplanarShowRender: 1, // ALWAYS
      dragAndDropEnabled: false,
      isColorbar: false,
      isOrientCube: true,
      logLevel: "error",
      loadingText: "",
    });
    await viewer.attachToCanvas(byId("canvas"));
    const load = (id, options) =>
      niivue.NVImage.loadFromBase64({ base64: byId(id).textContent, name: `${id}.nii.gz`, ...options });
    scan = await load("scan-data", { colormap: "gray", cal_min: page.window[0], cal_max: page.window[1] });
    labels = await load("labels-data", { colorbarVisible: false });
    for (const id of ["scan-data", "labels-data"]) byId(id).remove(); // tens of MB of text
    viewer.addVolume(scan);
    labels.setColormapLabel(colourTable());
    viewer.addVolume(labels);
    viewer.onLocationChange = readOut;
    viewer.onIntensityChange = showWindow;
    listen();
    showWindow();
    redraw();
    goTo(page.structures.reduce((one, other) => (other.voxels > one.voxels ? other : one)));
    state("ready", "");
  };

  open().catch((error) => {
    console.error(error);
    state("failed", `The viewer did not open: ${error.message || error}. The picture is below.`);
  });
})();
