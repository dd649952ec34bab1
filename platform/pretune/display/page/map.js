"use strict";
(() => {
  const { points, labels, names, thumbnails, classes, legend, axes } = JSON.parse(document.getElementById("images").textContent);
  const root = document.documentElement;
  const place = document.getElementById("map");
  const card = document.getElementById("card");
  const choice = document.getElementById("class");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const coarse = matchMedia("(pointer: coarse)").matches;
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross"];

  // Plotly reads tags in a legend.
  const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const listed = classes.length > legend;
  document.querySelector(".choose").hidden = !listed;

  // Hues that are far apart for neighbors in the list; lighter in the dark.
  const color = (number, count) => {
    if (number < 0) return getComputedStyle(root).getPropertyValue(count ? "--faint" : "--accent").trim();
    const hue = count <= legend ? (360 * number) / count : (137.508 * number) % 360;
    return `hsl(${hue.toFixed(1)}, 65%, ${dark.matches ? 66 : number % 2 ? 34 : 44}%)`;
  };

  const trace = (number) => {
    const rows = labels.flatMap((label, row) => (label === number ? [row] : []));
    const wanted = choice.value === "" || !listed || Number(choice.value) === number;
    return {
      type: "scatter", mode: "markers", name: number < 0 ? "no class" : plain(classes[number]), customdata: rows,
      x: rows.map((row) => points[row][0]), y: rows.map((row) => points[row][1]), hoverinfo: "none",
      showlegend: classes.length > 0 && !listed,
      marker: {
        size: points.length > 800 ? 6 : 8, symbol: SYMBOLS[Math.max(0, number) % SYMBOLS.length],
        color: color(number, classes.length), opacity: wanted ? 0.85 : 0.06, line: { width: 0 },
      },
    };
  };

  const draw = () => {
    const style = getComputedStyle(root);
    const [ink, soft, grid, line] = ["--ink", "--soft", "--grid", "--line"].map((name) => style.getPropertyValue(name).trim());
    const axis = (title) => ({
      title: { text: title, standoff: 8 }, gridcolor: grid, linecolor: line, zeroline: false, showticklabels: false,
      automargin: true,
    });
    const numbers = [...new Set(labels)].sort((one, other) => one - other);
    Plotly.react(place, numbers.map(trace), {
      font: { family: getComputedStyle(document.body).fontFamily, size: root.clientWidth < 640 ? 11 : 12.5, color: soft },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 8, r: 8, t: 8, b: 8 },
      xaxis: axis(axes[0]), yaxis: { ...axis(axes[1]), scaleanchor: axes[2] ? "x" : undefined },
      legend: { orientation: "h", y: 1.01, yanchor: "bottom", x: 0, font: { color: ink } },
      hovermode: "closest", dragmode: coarse ? "pan" : "zoom", autosize: true, uirevision: "same",
    }, { displayModeBar: false, responsive: true, scrollZoom: true });
    root.dataset.drawn = String(points.length);
  };

  const show = (event) => {
    const row = event.points[0].customdata;
    const box = event.points[0].bbox;
    const frame = place.getBoundingClientRect();
    card.querySelector("img").src = `data:image/jpeg;base64,${thumbnails[row]}`;
    card.querySelector("img").alt = names[row];
    card.querySelector("p").textContent = (labels[row] < 0 ? "" : `${classes[labels[row]]}\n`) + names[row];
    card.hidden = false;
    // Beside the point, and within the window.
    const x = frame.left + (box ? box.x1 : 0) + 12;
    const y = frame.top + (box ? box.y0 : 0) + 12;
    const left = x + card.offsetWidth > innerWidth ? x - card.offsetWidth - 28 : x;
    card.style.left = `${Math.min(Math.max(4, left), Math.max(4, innerWidth - card.offsetWidth - 4))}px`;
    card.style.top = `${Math.min(Math.max(4, y), Math.max(4, innerHeight - card.offsetHeight - 4))}px`;
  };
  const hide = () => { card.hidden = true; };

  draw();
  place.on("plotly_hover", show);
  place.on("plotly_click", show); // a finger does not hover
  place.on("plotly_unhover", () => coarse || hide());
  place.on("plotly_relayout", hide);
  addEventListener("scroll", hide, { passive: true });
  addEventListener("keydown", (event) => event.key === "Escape" && hide());
  choice.addEventListener("change", draw);
  dark.addEventListener("change", draw);
})();
