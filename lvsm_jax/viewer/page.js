// What viser's page lacks, run once in each visitor's browser: several files in one upload, files
// dropped anywhere on the page, and on phones a panel that is closed at first.
//
// viser's upload button takes one file. Several become one zip archive, stored, not compressed.
if (!window.lvsmPage) {
  window.lvsmPage = true;

  const theInput = () => document.querySelector('input[type=file][id^="file_upload_"]');
  const isInput = (target) => target instanceof HTMLInputElement && target === theInput();

  const table = new Uint32Array(256).map((_, n) => {
    for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
    return n;
  });
  const crc32 = (bytes) => {
    let crc = ~0;
    for (let i = 0; i < bytes.length; i++) crc = table[(crc ^ bytes[i]) & 255] ^ (crc >>> 8);
    return ~crc >>> 0;
  };

  const fields = (...pairs) => {
    const view = new DataView(new ArrayBuffer(pairs.reduce((sum, [size]) => sum + size, 0)));
    let at = 0;
    for (const [size, value] of pairs) {
      if (size === 2) view.setUint16(at, value, true);
      else view.setUint32(at, value, true);
      at += size;
    }
    return new Uint8Array(view.buffer);
  };

  // The archive's parts: each file after its header, then the directory, which repeats the headers.
  const zip = async (files) => {
    const parts = [];
    const directory = [];
    let at = 0;
    for (const { name, file } of files) {
      const bytes = new Uint8Array(await file.arrayBuffer());
      const path = new TextEncoder().encode(name);
      const both = [
        [2, 20], [2, 0x0800], [2, 0], [4, 0x00210000], // version, names in UTF-8, stored, a date
        [4, crc32(bytes)], [4, bytes.length], [4, bytes.length], [2, path.length], [2, 0],
      ];
      directory.push(
        fields([4, 0x02014b50], [2, 20], ...both, [2, 0], [2, 0], [2, 0], [4, 0], [4, at]), path);
      const header = fields([4, 0x04034b50], ...both);
      parts.push(header, path, bytes);
      at += header.length + path.length + bytes.length;
    }
    const size = directory.reduce((sum, part) => sum + part.length, 0);
    const count = files.length;
    const end = fields(
      [4, 0x06054b50], [2, 0], [2, 0], [2, count], [2, count], [4, size], [4, at], [2, 0]);
    return new File([...parts, ...directory, end], `${count} files.zip`, { type: "application/zip" });
  };

  // Gives viser's button one file, as if the visitor had chosen it.
  const hand = async (files) => {
    if (files.length === 0) return;
    const input = theInput();
    if (input === null) {
      window.alert("Open the panel, then drop the photographs again.");
      return;
    }
    const one = files.length === 1 ? files[0].file : await zip(files);
    const transfer = new DataTransfer();
    transfer.items.add(one);
    input.files = transfer.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  };

  const named = (file) => ({ name: file.webkitRelativePath || file.name, file });

  // The files of what was dropped, folders included.
  const filesOf = async (entry) => {
    if (entry.isFile) {
      const file = await new Promise((done, failed) => entry.file(done, failed));
      return [{ name: entry.fullPath.replace(/^\//, ""), file }];
    }
    const reader = entry.createReader();
    const found = [];
    for (;;) { // some at a time, until there are no more
      const some = await new Promise((done, failed) => reader.readEntries(done, failed));
      if (some.length === 0) return found;
      for (const inner of some) found.push(...(await filesOf(inner)));
    }
  };

  window.addEventListener("click", (event) => {
    if (isInput(event.target)) event.target.multiple = true;
  }, true);
  window.addEventListener("change", (event) => {
    if (!isInput(event.target) || event.target.files.length < 2) return;
    event.stopImmediatePropagation(); // viser would take the first alone
    hand([...event.target.files].map(named));
  }, true);

  const holdsFiles = (event) => event.dataTransfer && [...event.dataTransfer.types].includes("Files");
  window.addEventListener("dragover", (event) => {
    if (holdsFiles(event)) event.preventDefault(); // else the browser would leave for the file
  });
  window.addEventListener("drop", async (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.());
    if (!entries.every(Boolean)) return hand([...event.dataTransfer.files].map(named));
    hand((await Promise.all(entries.map(filesOf))).flat());
  });

  // On phones viser's panel is a sheet over the lower half of the render, open at first.
  if (window.matchMedia("(max-width: 36em)").matches) {
    let tries = 50;
    const close = () => {
      const sheets = [...document.querySelectorAll("div")].filter((div) => {
        const style = getComputedStyle(div);
        return style.position === "fixed" && style.bottom === "0px" && style.right === "0px";
      });
      const handle = sheets[0]?.querySelector('div[style*="cursor: pointer"]');
      if (handle) handle.click();
      else if (tries-- > 0) setTimeout(close, 100);
    };
    close();
  }
}
