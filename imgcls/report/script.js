// Tables: sorted by a click on a head, searched, and saved as CSV.
for (const table of document.querySelectorAll("table:not(.matrix table)")) {
  const body = table.tBodies[0];
  for (const head of table.querySelectorAll("th button")) head.addEventListener("click", () => {
    const cell = head.parentNode, column = cell.cellIndex, up = cell.getAttribute("aria-sort") !== "ascending";
    for (const other of cell.parentNode.children) other.removeAttribute("aria-sort");
    cell.setAttribute("aria-sort", up ? "ascending" : "descending");
    const text = row => row.cells[column].textContent, value = row => parseFloat(text(row)) || 0;
    const order = cell.classList.contains("n") ? (a, b) => value(a) - value(b) : (a, b) => text(a).localeCompare(text(b));
    body.append(...[...body.rows].sort((a, b) => (up ? 1 : -1) * order(a, b)));
  });
  const tools = document.createElement("p");
  tools.className = "tools";
  if (body.rows.length > 12) {
    const label = document.createElement("label"), field = document.createElement("input");
    field.type = "search";
    label.append("Search ", field);
    field.addEventListener("input", () => {
      for (const row of body.rows) row.hidden = !row.textContent.toLowerCase().includes(field.value.toLowerCase());
    });
    tools.append(label);
  }
  if (body.rows.length > 1) {
    const save = document.createElement("button");
    save.textContent = "CSV";
    save.title = "Save this table as a CSV file";
    save.addEventListener("click", () => {
      const quoted = cell => `"${cell.textContent.trim().replaceAll('"', '""')}"`;
      const rows = [...table.rows].map(row => [...row.cells].map(quoted).join(","));
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([rows.join("\n") + "\n"], {type: "text/csv"}));
      link.download = (table.dataset.file || table.closest("section").querySelector("h2").id) + ".csv";
      link.click();
    });
    tools.append(save);
  }
  if (tools.children.length) table.parentNode.before(tools);
}

// Images: searched by class and file, enlarged by a click; arrow keys go to the next one.
for (const field of document.querySelectorAll(".search input")) {
  const items = [...field.closest("p").nextElementSibling.children], status = field.closest("p").querySelector("span");
  field.addEventListener("input", () => {
    for (const item of items) item.hidden = !item.textContent.toLowerCase().includes(field.value.toLowerCase());
    status.textContent = field.value ? `${items.filter(item => !item.hidden).length} of ${items.length}` : "";
  });
}
const dialog = document.querySelector("dialog");
let enlarged = null;
function enlarge(button) {
  enlarged = button;
  const figure = button.closest("figure").cloneNode(true);
  figure.querySelector("button").replaceWith(figure.querySelector("img"));
  for (const near of figure.querySelectorAll(".near")) near.hidden = false;
  const close = document.createElement("button");
  close.textContent = "Close";
  close.addEventListener("click", () => dialog.close());
  dialog.replaceChildren(figure, close);
  if (!dialog.open) dialog.showModal();
}
for (const button of document.querySelectorAll(".enlarge")) button.addEventListener("click", () => enlarge(button));
dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });
dialog.addEventListener("keydown", event => {
  const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
  if (!step) return;
  const all = [...enlarged.closest("ul").querySelectorAll("li:not([hidden]) .enlarge")];
  enlarge(all[(all.indexOf(enlarged) + step + all.length) % all.length]);
});
for (const image of document.querySelectorAll(".pictures img")) {
  const sharpen = () => image.classList.toggle("pixels", image.naturalWidth > 0 && image.naturalWidth <= 64);
  if (image.complete) sharpen(); else image.addEventListener("load", sharpen);
}

// The confusion matrix.
for (const box of document.querySelectorAll(".matrix")) {
  const {names, cells, errors} = JSON.parse(box.nextElementSibling.textContent), status = box.previousElementSibling;
  const count = names.length, small = count <= 30, values = names.map(() => new Array(count).fill(0));
  for (const [row, column, images] of cells) values[row][column] = images;
  const rows = values.map(row => row.reduce((a, b) => a + b)), columns = names.map((_, c) => values.reduce((a, row) => a + row[c], 0));
  const table = box.appendChild(document.createElement("table")), head = table.createTHead().insertRow();
  table.classList.toggle("small", small);
  const name = (row, text, title) => {
    const cell = row.appendChild(document.createElement("th")), inner = cell.appendChild(document.createElement("span"));
    inner.textContent = text;
    cell.title = title || text;
    return cell;
  };
  name(head, "true \\ predicted");
  for (const text of names) name(head, text);
  const body = table.createTBody();
  names.forEach((text, r) => {
    const row = body.insertRow();
    name(row, text);
    names.forEach((_, c) => { row.insertCell().className = r === c ? "right" : ""; });
  });
  const cell = (r, c) => body.rows[r].cells[c + 1];
  const percent = (part, whole) => whole ? Math.round(100 * part / whole) : 0;
  function draw(mode) {
    const most = Math.max(...cells.map(entry => entry[2]));
    for (const [r, c, images] of cells) {
      const whole = {row: rows[r], column: columns[c], none: most}[mode];
      cell(r, c).style.setProperty("--share", Math.sqrt(images / whole).toFixed(3));
      if (small) cell(r, c).textContent = mode === "none" ? images : percent(images, whole);
    }
  }
  let at = [0, 0];
  function select(r, c, scroll) {
    for (const old of box.querySelectorAll(".at")) old.classList.remove("at");
    at = [r, c];
    cell(r, c).classList.add("at");
    body.rows[r].cells[0].classList.add("at");
    head.cells[c + 1].classList.add("at");
    if (scroll) cell(r, c).scrollIntoView({block: "nearest", inline: "nearest"});
    const images = values[r][c];
    status.textContent = `True ${names[r]}, predicted ${names[c]}: ${images} image${images === 1 ? "" : "s"}, `
      + `${percent(images, rows[r])} % of the true and ${percent(images, columns[c])} % of the predicted class.`;
  }
  function open() {
    const field = errors && document.getElementById(errors)?.parentNode.querySelector("input[type=search]");
    if (!field || at[0] === at[1] || !values[at[0]][at[1]]) return;
    field.value = `true ${names[at[0]]}predicted ${names[at[1]]}`;
    field.dispatchEvent(new Event("input"));
    document.getElementById(errors).scrollIntoView();
  }
  const place = event => {
    const found = event.target.closest("td");
    return found && [found.parentNode.rowIndex - 1, found.cellIndex - 1];
  };
  box.addEventListener("pointerover", event => { const found = place(event); if (found) select(...found); });
  box.addEventListener("click", event => { const found = place(event); if (found) { select(...found); open(); } });
  box.addEventListener("keydown", event => {
    const step = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[event.key];
    if (event.key === "Enter") open();
    if (!step) return;
    event.preventDefault();
    select(...at.map((value, axis) => Math.min(count - 1, Math.max(0, value + step[axis]))), true);
  });
  const choices = status.previousElementSibling;
  choices.addEventListener("change", event => draw(event.target.value));
  draw("row");
}
