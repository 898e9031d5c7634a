// What every gr.HTML of the app listens to: each calls this when it is loaded, with what Gradio gives its js_on_load.
// data-kind="seek" jumps in the player, "copy" fills the clipboard, anything else goes to Python as `data-event`.
let typed = false;  // the search under way was typed (or dragged), so that another one may follow at once
let typedOn = false;  // the history's last entry is one of those: what follows takes its place
const places = {};  // query -> where its results were left: {limit, y, x}
let back = null;  // the query whose place is to be taken again, once its results are there
document.addEventListener('pointerdown', () => { typedOn = false; }, true);
const linked = () => document.querySelector('#results [data-link]')?.dataset.link ?? '';
const strip = () => document.querySelector('#results .suma-tiles');
const notePlace = () => { Object.assign(places[linked()] ??= {}, {y: window.scrollY, x: strip()?.scrollLeft || 0}); };
const takePlace = (query) => {
  const {x = 0, y = 0} = places[query] || {};
  strip()?.scrollTo(x, 0);
  window.scrollTo(0, y);
};
window.sumaListen = (element, trigger, watch) => {
  const player = (of) => document.querySelector(of.dataset.player + ' video');
  // A frame's own time is where the frame before ends: rounding puts a seek there on either of the two. So seek a
  // little into the frame, by less than the shortest frame in use lasts, and more than times are rounded by.
  const INTO = 0.001;  // seconds
  const show = (video, time) => {
    video.currentTime = time + INTO;
    const atEnd = video.currentTime >= video.duration;  // the last frame of some files lasts no time at all:
    if (atEnd) video.autoplay = false;  // to play on would be to show the first frame
    return !atEnd;
  };
  const seek = (svg, frame) => {
    const video = player(svg);
    if (video && show(video, JSON.parse(svg.dataset.times)[frame])) video.play().catch(() => {});
  };
  const busy = () => {  // the results are being made anew; after a while the page is not kept waiting for them
    const results = document.querySelector('#results');
    results?.classList.add('suma-busy');
    setTimeout(() => results?.classList.remove('suma-busy'), 8000);
  };
  const act = (hit) => {
    if (hit.dataset.kind === 'seek') return seek(hit.closest('svg'), hit.dataset.frame);
    if (hit.dataset.kind === 'copy') {
      const text = hit.dataset.text || window.location.href;
      const done = () => { hit.dataset.done = 'true'; setTimeout(() => delete hit.dataset.done, 1500); };
      navigator.clipboard?.writeText(text).then(done, () => window.prompt('Copy:', text));
      if (!navigator.clipboard) window.prompt('Copy:', text);
      return;
    }
    if (hit.hasAttribute('aria-pressed')) {
      for (const on of element.querySelectorAll('[aria-pressed=true]')) on.setAttribute('aria-pressed', 'false');
      hit.setAttribute('aria-pressed', 'true');
    }
    if (hit.dataset.kind === 'query' || hit.dataset.event === 'input') {
      typed = false;
      busy();
    }
    if (hit.dataset.kind === 'more' || (hit.dataset.kind === 'video' && element.closest('#results'))) notePlace();
    if (hit.dataset.kind === 'more' && element.closest('#results')) {
      back = linked();
      pressed = element.querySelector('[aria-pressed=true]')?.dataset.video;
    }
    if (hit.dataset.kind === 'video' && element.closest('#results')) {  // Back leads to the results
      const {state} = window.history, now = {...state, suma: true, video: hit.dataset.video};
      window.history[state?.video ? 'replaceState' : 'pushState'](now, '');
    }
    if (['video', 'concept'].includes(hit.dataset.kind)) window.sumaChosen = performance.now();
    held = hit === document.activeElement ? hit.dataset.word : undefined;
    trigger(hit.dataset.event || 'select', {...hit.dataset});
  };
  let pressed;  // the video whose tile is marked again when more of them are drawn
  let held;  // the word of the button that has the focus, which moves with its concept when the bar is drawn anew
  element.addEventListener('click', (event) => {
    const hit = event.target.closest('[data-kind]');
    if (hit && hit.tagName !== 'INPUT') act(hit);
  });

  // sliders and words of the steering: a slider tells Python while it moves, and is not drawn again
  element.addEventListener('input', (event) => {
    const slider = event.target.closest('input[type=range][data-word]');
    if (!slider) return;
    const value = Number(slider.value);
    slider.parentElement.querySelector('output').textContent = value.toFixed(2);
    slider.setAttribute('aria-valuetext', value.toFixed(2));
    typed = true;
    trigger('input', {kind: 'weight', word: slider.dataset.word, value});
  });
  element.addEventListener('change', (event) => {
    const menu = event.target.closest('select[data-filter]');
    if (!menu) return;
    typed = false;
    busy();
    trigger('input', {kind: 'filter', filter: menu.dataset.filter, value: menu.value});
  });
  element.addEventListener('submit', (event) => {
    const form = event.target.closest('form[data-add]');
    if (!form) return;
    event.preventDefault();
    const word = form.querySelector('input').value.trim();
    if (!word) return;
    held = '';
    typed = false;
    form.reset();
    trigger('input', {kind: 'add', word});
  });

  // keys: arrows walk through tiles, and through the moments of a heat map
  element.addEventListener('keydown', (event) => {
    const step = {ArrowRight: 1, ArrowLeft: -1, ArrowDown: 'down', ArrowUp: 'up'}[event.key];
    if (!step) return;
    const svg = event.target.closest('svg[data-times]');
    if (svg) {
      if (typeof step === 'string') return;
      const count = JSON.parse(svg.dataset.times).length;
      const now = Math.min(count - 1, Math.max(0, Number(svg.dataset.now || 0) + step));
      seek(svg, now);
      return event.preventDefault();
    }
    const tile = event.target.closest('.suma-tile');
    if (!tile) return;
    const all = [...element.querySelectorAll('.suma-tile')], at = all.indexOf(tile);
    const columns = all.filter((other) => other.offsetTop === all[0].offsetTop).length || 1;
    const next = all[at + (step === 'down' ? columns : step === 'up' ? -columns : step)];
    event.preventDefault();
    if (next) next.focus();
    else if (step === 'up') document.querySelector('#query textarea, #query input')?.focus();
  });

  // what stands beside a player says where it starts: a new source loses gr.Video's playback_position
  let started = '';
  const start = (loaded) => {
    const mark = element.querySelector('[data-start]');
    const video = mark && player(mark);
    if (!video || video.readyState < 1 || (loaded && loaded !== video)) return;
    const now = mark.dataset.clip + '@' + mark.dataset.start;
    if (!loaded && now === started) return;
    started = now;
    show(video, Number(mark.dataset.start));
  };
  document.addEventListener('loadedmetadata', (event) => {
    const {videoWidth, videoHeight, style} = event.target;
    if (videoHeight) style.setProperty('--aspect', videoWidth / videoHeight);
    start(event.target);
  }, true);
  watch('value', () => {
    element.closest('#results')?.classList.remove('suma-busy');
    start(null);
    const focus = document.activeElement;
    if (held !== undefined && (focus === document.body || element.contains(focus))) {
      const again = `.suma-knob button[data-word="${CSS.escape(held)}"]`;
      (element.querySelector(held ? again : 'form[data-add] input') || element.querySelector('.suma-link'))?.focus();
    }
    held = undefined;
    const map = element.querySelector('.suma-heat'), mark = element.querySelector('.suma-best');
    if (map && mark) {  // on a narrow page the best moment is brought into sight
      const names = map.firstElementChild.offsetWidth, at = mark.getBoundingClientRect().left;
      map.scrollLeft += at - map.getBoundingClientRect().left - names - (map.clientWidth - names) / 2;
    }
    const answer = element.querySelector('.suma-heading, .suma-playing');
    if (answer && performance.now() - (window.sumaChosen || -9999) < 4000) answer.scrollIntoView({block: 'nearest'});
    const link = element.querySelector('[data-link]');
    if (link) {  // what was asked is in the page's address, and in the history: Back shows the results before
      const url = new URL(window.location.href), {state} = window.history;
      const same = (url.searchParams.get('q') || '') === link.dataset.link;
      if (link.dataset.link) url.searchParams.set('q', link.dataset.link);
      else url.searchParams.delete('q');
      const first = !state?.suma;
      if (same || first || (typed && typedOn)) window.history.replaceState({...state, suma: true}, '', url);
      else window.history.pushState({...state, suma: true}, '', url);
      if (!same) typedOn = typed && !first;
      places[link.dataset.link] = {...places[link.dataset.link], limit: link.dataset.limit};
      if (back === link.dataset.link) {
        takePlace(back);
        const tiles = [...element.querySelectorAll('.suma-tile')], chosen = tiles.find((tile) => tile.dataset.video === pressed);
        if (chosen) for (const tile of tiles) tile.setAttribute('aria-pressed', tile === chosen);
      }
      back = pressed = null;
    }
    const file = element.querySelector('a[download]');
    if (file) file.click();
  });
  document.addEventListener('timeupdate', (event) => {
    const svg = element.querySelector('svg[data-times]');
    if (!svg || event.target !== player(svg)) return;
    const times = JSON.parse(svg.dataset.times), now = event.target.currentTime, n = times.length;
    let i = 0;
    while (i + 1 < n && times[i + 1] <= now + 0.001) i++;
    const gap = i + 1 < n ? times[i + 1] - times[i] : 2 * (event.target.duration - times[i]);
    const at = Math.min(n, Math.max(0, i + 0.5 + (gap > 0 ? (now - times[i]) / gap : 0)));
    const line = svg.querySelector('.suma-playhead');
    for (const side of ['x1', 'x2']) line.setAttribute(side, (100 * at / n) + '%');
    svg.dataset.now = i;
    svg.setAttribute('aria-valuenow', now.toFixed(1));
    svg.setAttribute('aria-valuetext', now.toFixed(1) + ' seconds');
  }, true);

  // one of them watches the search box: a search once typing pauses, the first result on the arrow down
  if (element.querySelector('[data-live]')) {
    let timer = 0;
    const inQuery = (event) => event.target.closest?.('#query');
    document.addEventListener('input', (event) => {
      if (!inQuery(event) || event.isComposing) return;
      if (event.isTrusted) back = null;
      clearTimeout(timer);
      timer = setTimeout(() => {
        typed = true;
        busy();
        trigger('input', {limit: back === null ? 0 : places[back]?.limit});
      }, back === null ? 350 : 0);
    });
    window.addEventListener('popstate', () => {
      const box = document.querySelector('#query textarea, #query input');
      if (!box.offsetParent) document.querySelector('[role=tab]').click();
      box.value = new URL(window.location.href).searchParams.get('q') || '';
      document.querySelector('#player video')?.pause();
      if (box.value === linked()) return takePlace(box.value);  // from a video
      back = box.value;
      box.dispatchEvent(new Event('input', {bubbles: true}));
      typedOn = false;
    });
    document.addEventListener('keydown', (event) => {
      if (inQuery(event)) {
        if (event.key === 'Enter') {
          clearTimeout(timer);
          typed = typedOn = false;
        }
        if (event.key === 'ArrowDown') {
          event.preventDefault();
          document.querySelector('#results .suma-tile')?.focus();
        }
      } else if (event.key === '/' && !event.target.closest?.('input, textarea')) {
        const box = document.querySelector('#query textarea, #query input');
        if (box && box.offsetParent) { event.preventDefault(); box.focus(); box.select(); }
      }
    });
  }
};

// A tile under the pointer shows the frame of its video that lies there; one that the keyboard reached plays through.
let scrubbed = null;  // {tile, over, picture, timer}
const scrub = (share) => {
  const {over, picture} = scrubbed, frames = 12, at = Math.min(frames - 1, Math.max(0, Math.floor(share * frames)));
  const {clientWidth: w, clientHeight: h} = over, width = picture.naturalWidth / frames;
  if (!width) return;
  const scale = Math.max(w / width, h / picture.naturalHeight);
  over.style.backgroundSize = `${scale * picture.naturalWidth}px ${scale * picture.naturalHeight}px`;
  over.style.backgroundPosition = `${-scale * width * at - (scale * width - w) / 2}px ${(h - scale * picture.naturalHeight) / 2}px`;
  over.style.setProperty('--at', 100 * (at + 1) / frames + '%');
  over.dataset.frame = at;
};
const stopScrubbing = () => {
  clearInterval(scrubbed?.timer);
  scrubbed?.over.remove();
  scrubbed = null;
};
const startScrubbing = (tile, then) => {
  if (scrubbed?.tile === tile) return;
  stopScrubbing();
  if (!tile?.dataset.sprite) return;
  const over = Object.assign(document.createElement('span'), {className: 'suma-scrub'}), picture = new Image();
  const mine = scrubbed = {tile, over, picture};
  picture.onload = () => {
    if (scrubbed !== mine) return;
    over.style.backgroundImage = `url("${picture.src}")`;
    tile.querySelector('.suma-poster').append(over);
    then(mine);
  };
  const {root, api_prefix: api} = window.gradio_config;
  mine.timer = setTimeout(() => { picture.src = `${root}${api}/suma-sprites/${tile.dataset.sprite}`; }, 100);  // it stays
};
document.addEventListener('pointermove', (event) => {
  if (event.pointerType === 'touch') return;
  const tile = event.target.closest?.('.suma-tile[data-sprite]'), place = tile?.getBoundingClientRect();
  const show = () => scrub((event.clientX - place.left) / place.width);
  if (!tile || scrubbed?.tile !== tile) startScrubbing(tile, show);
  else if (scrubbed.over.isConnected) show();
}, {passive: true});
document.addEventListener('focusin', (event) => {
  const tile = event.target.closest?.('.suma-tile[data-sprite]');
  const still = window.matchMedia('(prefers-reduced-motion: reduce)').matches;
  if (!tile || still || !tile.matches(':focus-visible')) return;
  startScrubbing(tile, (mine) => {
    let frame = 0;
    scrub(0);
    mine.timer = setInterval(() => scrubbed === mine && scrub((frame = (frame + 1) % 12) / 12), 400);
  });
});
document.addEventListener('focusout', stopScrubbing);
