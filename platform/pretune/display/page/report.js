"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const root = document.documentElement;
  const narrow = () => root.clientWidth < 640;

  // Colors are names of the page's own until a figure is drawn, so that it follows light and dark.
  const withColors = (value, style) => {
    if (typeof value === "string") return value.startsWith("--") ? style.getPropertyValue(value).trim() : value;
    if (Array.isArray(value)) {
      const numbers = typeof value[0] === "number" && typeof value.at(-1) !== "string"; // most are: left as they are
      return numbers ? value : value.map((item) => withColors(item, style));
    }
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, withColors(item, style)]));
  };

  const axis = (given, style) => ({
    gridcolor: "--grid", linecolor: "--line", tickcolor: "--line", zeroline: false, automargin: true,
    fixedrange: matchMedia("(pointer: coarse)").matches, ...given,
    title: typeof given.title === "string" ? { text: given.title, standoff: 10 } : given.title,
  });

  const layout = (given, height, width) => {
    const style = getComputedStyle(root);
    const whole = {
      font: { family: getComputedStyle(document.body).fontFamily, size: narrow() ? 11 : 12.5, color: "--ink" },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 8, r: narrow() ? 8 : 16, t: 8, b: 8 },
      hoverlabel: { bgcolor: "--raised", bordercolor: "--line", font: { color: "--ink", size: 12 }, align: "left" },
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, xanchor: "left", font: { color: "--soft" } },
      hovermode: "closest", autosize: width === undefined, height,
      ...(width === undefined ? {} : { width }), ...given,
    };
    for (const name of Object.keys(whole)) {
      if (/^[xy]axis\d*$/.test(name)) whole[name] = axis(whole[name]);
    }
    whole.xaxis ??= axis({});
    whole.yaxis ??= axis({});
    return withColors(whole, style);
  };

  const draw = (width) => {
    const style = getComputedStyle(root);
    figures.forEach((figure, number) => {
      const place = document.getElementById(`figure-${number}`);
      const beside = place.closest(".beside") !== null;
      const wide = beside && width !== undefined ? width / 2 - 14 : width;
      Plotly.react(
        place, withColors(figure.data, style), layout(figure.layout, Number(place.dataset.height), wide),
        { displayModeBar: false, responsive: true },
      );
    });
    root.dataset.drawn = String(figures.length);
  };

  let printing = false;
  const forPaper = () => {
    if (printing) return;
    printing = true;
    root.classList.add("paper");
    draw(680);
  };
  const forScreen = () => {
    if (!printing) return;
    printing = false;
    root.classList.remove("paper");
    draw();
  };
  addEventListener("beforeprint", forPaper);
  addEventListener("afterprint", forScreen);
  matchMedia("print").addEventListener("change", (event) => (event.matches ? forPaper() : forScreen()));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => printing || draw());
  draw();
})();
