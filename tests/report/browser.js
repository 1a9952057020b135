// Stands in for plotly.js inside kaleido: loads a page in a frame of a given width and runs a script on its window.
window.Plotly = {
  version: "2.0.0",
  toImage: async (figure) => {
    const { page, width, script } = figure.data[0];
    const frame = document.createElement("iframe");
    frame.style.cssText = `width:${width}px;height:800px;border:0`;
    document.body.append(frame);
    await new Promise((done) => { frame.onload = done; frame.srcdoc = page; });
    const look = new Function("window", "document", `return (async () => {${script}})()`);
    return JSON.stringify(await look(frame.contentWindow, frame.contentDocument));
  },
};
