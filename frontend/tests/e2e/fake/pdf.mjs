// Makes small PDF files by hand: Chinese text in a font that is not embedded, so pdf.js needs its maps.

const PAGE = { width: 595, height: 842 };
const hex = (text) => [...text].map((c) => c.codePointAt(0).toString(16).padStart(4, '0')).join('');

/** `pages` is a list of pages, each a list of lines; returns the file's bytes. */
export function makePdf(pages) {
  const objects = [];
  const add = (body) => objects.push(body);
  add('<< /Type /Catalog /Pages 2 0 R >>');
  add(''); // The page tree, known at the end.
  add('<< /Type /Font /Subtype /Type0 /BaseFont /STSong-Light /Encoding /UniGB-UCS2-H /DescendantFonts [4 0 R] >>');
  add(
    '<< /Type /Font /Subtype /CIDFontType0 /BaseFont /STSong-Light /DW 1000 /W [1 95 500] ' +
      '/CIDSystemInfo << /Registry (Adobe) /Ordering (GB1) /Supplement 4 >> /FontDescriptor 5 0 R >>',
  );
  add(
    '<< /Type /FontDescriptor /FontName /STSong-Light /Flags 4 /FontBBox [-25 -254 1000 880] ' +
      '/ItalicAngle 0 /Ascent 880 /Descent -120 /CapHeight 880 /StemV 93 >>',
  );
  const kids = pages.map((lines) => {
    const content = pageContent(lines);
    const stream = add(`<< /Length ${content.length} >>\nstream\n${content}\nendstream`);
    const page = add(
      `<< /Type /Page /Parent 2 0 R /MediaBox [0 0 ${PAGE.width} ${PAGE.height}] ` +
        `/Resources << /Font << /F1 3 0 R >> >> /Contents ${stream} 0 R >>`,
    );
    return `${page} 0 R`;
  });
  objects[1] = `<< /Type /Pages /Count ${kids.length} /Kids [${kids.join(' ')}] >>`;
  return assemble(objects);
}

/** The line with number `index` as a box in fractions of the page, origin top left. */
export function lineBox(page, index, share = 0.7) {
  const top = (PAGE.height - (780 - index * 24) - 12) / PAGE.height;
  return { page, left: 56 / PAGE.width, top, right: share, bottom: top + 16 / PAGE.height };
}

function pageContent(lines) {
  return lines.map((line, index) => `BT /F1 12 Tf 60 ${780 - index * 24} Td <${hex(line)}> Tj ET`).join('\n');
}

function assemble(objects) {
  let file = '%PDF-1.5\n';
  const offsets = objects.map((body, index) => {
    const offset = file.length;
    file += `${index + 1} 0 obj\n${body}\nendobj\n`;
    return offset;
  });
  const xref = file.length;
  const rows = offsets.map((offset) => `${String(offset).padStart(10, '0')} 00000 n \n`).join('');
  file += `xref\n0 ${objects.length + 1}\n0000000000 65535 f \n${rows}`;
  file += `trailer\n<< /Size ${objects.length + 1} /Root 1 0 R >>\nstartxref\n${xref}\n%%EOF\n`;
  return Buffer.from(file, 'latin1');
}
