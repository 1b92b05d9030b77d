// Looks at the pages in Chromium as people do: in light and dark, on a phone and on a screen, with
// and without JavaScript, by keyboard, and with axe-core for those who use a screen reader.
//
// Reads what to look at as JSON from standard input, and prints one line for each fault. The exit
// status is 0 if all checks ran.
import { readFileSync, mkdirSync } from 'node:fs';
import { createRequire } from 'node:module';
import { chromium } from 'playwright-core';

const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
// base is the URL of the server, pages the paths of its pages by name, and typed a text to search
// for that finds the link found. With screenshots, the pages are also saved to that directory.
const { base, pages, typed, found, chromium: executablePath, screenshots } = JSON.parse(readFileSync(0, 'utf8'));
const timeout = 30_000;

const fault = (where, text) => console.log(`${where}: ${text.replace(/\s+/g, ' ').slice(0, 500)}`);

// open returns a page that reports errors and requests to other hosts.
async function open(context, where) {
  const page = await context.newPage();
  page.setDefaultTimeout(timeout);
  page.at = where;
  page.on('console', (message) => {
    if (['error', 'warning'].includes(message.type()) && !page.expectsErrors) fault(page.at, `console: ${message.text()} ${message.location().url}`);
  });
  page.on('pageerror', (error) => fault(page.at, `script: ${error.stack}`));
  page.on('request', (request) => {
    if (new URL(request.url()).origin !== base) fault(page.at, `requests ${request.url()} of another host`);
  });
  return page;
}

async function checkLayout(page) {
  const { scroll, client, wide } = await page.evaluate(() => {
    const root = document.scrollingElement;
    const wide = [...document.body.querySelectorAll('*')].filter((e) => e.getBoundingClientRect().right > root.clientWidth + 1 && !e.closest('pre *, .scroll *, .hidden'));
    return { scroll: root.scrollWidth, client: root.clientWidth, wide: wide.slice(-2).map((e) => e.outerHTML.slice(0, 120)) };
  });
  if (scroll > client) fault(page.at, `is ${scroll} px wide on ${client}: ${wide.join(' | ')}`);
}

async function checkAccessibility(page) {
  await page.evaluate(axe);
  const violations = await page.evaluate(async () => {
    // Without preload, which fetches style sheets again.
    const { violations } = await globalThis.axe.run(document, { resultTypes: ['violations'], preload: false });
    return violations.map((v) => ({ id: v.id, impact: v.impact, help: v.help, nodes: v.nodes.slice(0, 3).map((n) => `${n.html.slice(0, 160)} ${n.failureSummary}`) }));
  });
  for (const v of violations) {
    if (['serious', 'critical'].includes(v.impact)) fault(page.at, `axe-core: ${v.impact}: ${v.id}: ${v.help}: ${v.nodes.join(' | ')}`);
  }
}

// checkKeyboard presses Tab until the focus leaves the page. It must reach everything that a mouse
// can use, in sight, and the focus must show.
async function checkKeyboard(page) {
  const wanted = await page.evaluate(() => {
    const all = document.querySelectorAll('a[href], button, input, select, textarea, summary, [tabindex="0"]');
    const usable = [...all].filter((e) => !e.disabled && e.type !== 'hidden' && e.checkVisibility({ visibilityProperty: true }));
    const look = (e) => {
      const s = getComputedStyle(e);
      const outline = s.outlineStyle === 'none' || parseFloat(s.outlineWidth) === 0 ? '' : s.outline;
      return [outline, s.boxShadow, s.borderColor, s.backgroundColor].join();
    };
    globalThis.tabbed = { usable, look, before: usable.map(look), reached: new Set() };
    document.activeElement.blur();
    return usable.length;
  });
  for (let i = 0; i <= wanted; i++) {
    await page.keyboard.press('Tab');
    const left = await page.evaluate(() => {
      const { usable, look, before, reached } = globalThis.tabbed;
      const e = document.activeElement, n = usable.indexOf(e);
      if (e === document.body || reached.has(n)) return { done: true };
      reached.add(n);
      const box = e.getBoundingClientRect();
      const html = e.outerHTML.slice(0, 160);
      if (n >= 0 && look(e) === before[n]) return { text: `the focus does not show on ${html}` };
      if (box.bottom <= 0 || box.top >= innerHeight || box.right <= 0 || box.left >= innerWidth) return { text: `the focus is out of sight on ${html}` };
      return {};
    });
    if (left.text) fault(page.at, left.text);
    if (left.done) break;
  }
  const missed = await page.evaluate(() => {
    const { usable, reached } = globalThis.tabbed;
    return usable.filter((e, n) => !reached.has(n)).map((e) => e.outerHTML.slice(0, 160));
  });
  if (missed.length > 0) fault(page.at, `Tab reaches ${wanted - missed.length} of ${wanted}, not ${missed.slice(0, 3).join(' | ')}`);
}

// checkCopying uses the buttons that copy commands.
async function checkCopying(page) {
  const buttons = page.locator('button.copy:visible');
  const count = await buttons.count();
  if (count === 0) fault(page.at, 'has no button to copy a command');
  for (let i = 0; i < count; i++) {
    const button = buttons.nth(i);
    const want = await button.evaluate((b) => b.parentElement.querySelector('pre').innerText);
    await page.evaluate(() => navigator.clipboard.writeText(''));
    await button.click();
    const got = await page.waitForFunction(() => navigator.clipboard.readText(), null, { timeout: 3000 }).then((h) => h.jsonValue(), () => '');
    if (got.trim() !== want.trim() || want.trim() === '') fault(page.at, `copies ${JSON.stringify(got)}, not ${JSON.stringify(want)}`);
  }
}

// checkTyping types a text and expects results without a new page.
async function checkTyping(page) {
  await page.goto(base + '/search');
  page.at += ', typing';
  await page.evaluate(() => { globalThis.same = true; });
  const box = page.locator('input[name=q]');
  await box.pressSequentially(typed, { delay: 15 });
  await page.locator(`main a[href*="${found}"]`).first().waitFor().catch(() => fault(page.at, `${typed} does not find ${found}`));
  // What was found can be kept and shared.
  await page.waitForFunction((q) => new URL(location).searchParams.get('q') === q, typed).catch(() => fault(page.at, `the address is ${page.url()}`));
  if (!await page.evaluate(() => globalThis.same)) fault(page.at, 'has loaded a new page');
  if (!await box.evaluate((e) => document.activeElement === e)) fault(page.at, 'the focus has left the text');
  if (await box.inputValue() !== typed) fault(page.at, `the text is ${await box.inputValue()}`);
  const status = await page.locator('[aria-live], [role=status]').first().innerText();
  if (!/\d/.test(status)) fault(page.at, `announces ${JSON.stringify(status)}`);
  await box.fill('nothing-has-this-name');
  await page.waitForFunction(() => document.querySelectorAll('main table a').length === 0).catch(() => fault(page.at, 'still shows results of another text'));
}

// checkForm searches with the form alone.
async function checkForm(page) {
  await page.goto(base + '/search');
  page.at += ', form';
  await page.locator('input[name=q]').fill(typed);
  await Promise.all([page.waitForURL(/q=/), page.keyboard.press('Enter')]);
  const link = page.locator(`main a[href*="${found}"]`).first();
  if (await link.count() === 0) return fault(page.at, `${typed} does not find ${found}`);
  await Promise.all([page.waitForURL(/\/item\//), link.click()]);
}

async function checkLinks(page, context, known) {
  for (const target of await page.evaluate(() => [...document.querySelectorAll('a[href]')].map((a) => a.href))) {
    const url = new URL(target);
    url.hash = '';
    if (url.origin !== base || url.href === page.url() || known.has(url.href)) continue;
    known.add(url.href);
    const answer = await context.request.fetch(url.href, { method: 'HEAD', headers: { accept: 'text/html' }, maxRedirects: 0, timeout });
    if (answer.status() >= 400) fault(page.at, `the link ${url.href} answers ${answer.status()}`);
  }
}

const browser = await chromium.launch({
  executablePath,
  // Root, as in containers, has no sandbox, and Chromium's own services are on other hosts.
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
});
if (screenshots) mkdirSync(screenshots, { recursive: true });
const known = new Set();
for (const javaScriptEnabled of [true, false]) {
  for (const colorScheme of ['light', 'dark']) {
    for (const width of [360, 1280]) {
      const context = await browser.newContext({ javaScriptEnabled, colorScheme, viewport: { width, height: 800 }, reducedMotion: 'reduce' });
      const how = `${colorScheme}, ${width} px${javaScriptEnabled ? '' : ', no script'}`;
      const page = await open(context, how);
      for (const [name, path] of Object.entries(pages)) {
        page.at = `${name}, ${how}`;
        page.expectsErrors = name.startsWith('missing'); // Chromium reports the status 404
        const answer = await page.goto(base + path);
        if (answer.status() !== (page.expectsErrors ? 404 : 200)) fault(page.at, `status ${answer.status()}`);
        await checkLayout(page);
        if (screenshots) await page.screenshot({ path: `${screenshots}/${name}-${how.replaceAll(', ', '-').replaceAll(' ', '')}.png`, fullPage: name !== 'stranger' });
        if (javaScriptEnabled) await checkAccessibility(page);
        // The order of the focus depends on the width only.
        if (javaScriptEnabled && (colorScheme === 'light') === (width === 360)) await checkKeyboard(page);
        if (javaScriptEnabled && colorScheme === 'light' && width === 360) await checkLinks(page, context, known);
      }
      page.expectsErrors = false;
      if (javaScriptEnabled && colorScheme === 'light') {
        await context.grantPermissions(['clipboard-read', 'clipboard-write']);
        for (const name of ['home', 'item'].filter((n) => n in pages)) {
          page.at = `${name}, ${how}`;
          await page.goto(base + pages[name]);
          await checkCopying(page);
        }
        page.at = `search, ${how}`;
        await checkTyping(page);
      }
      if (!javaScriptEnabled) {
        page.at = `search, ${how}`;
        await checkForm(page);
      }
      await context.close();
    }
  }
}
await browser.close();
