// npm taskcluster-client: a task's life, temporary credentials, signed URLs, the test endpoints.
import { randomBytes } from 'node:crypto';
import { createRequire } from 'node:module';
import { Readable, Writable } from 'node:stream';
import { pathToFileURL } from 'node:url';

const require = createRequire(`${process.env.CLIENTS_NODE_DIR}/`);
const { default: taskcluster } = await import(pathToFileURL(require.resolve('taskcluster-client')));
const rootUrl = process.env.TASKCLUSTER_ROOT_URL;
const credentials = {
  clientId: process.env.TASKCLUSTER_CLIENT_ID,
  accessToken: process.env.TASKCLUSTER_ACCESS_TOKEN,
};
const queue = new taskcluster.Queue({ rootUrl, credentials });
const worker = { workerGroup: 'g', workerId: 'w' };

const assert = (condition, text) => {
  if (!condition) {
    throw new Error(text ?? 'not so');
  }
};
const refused = async (status, promise) => {
  try {
    await promise;
  } catch (error) {
    assert(error.statusCode === status, `${error.statusCode}: ${error.message}`);
    return error;
  }
  throw new Error('was not refused');
};
const definition = queueId => ({
  taskQueueId: queueId,
  created: taskcluster.fromNowJSON('0 seconds'),
  deadline: taskcluster.fromNowJSON('1 hour'),
  payload: { n: 3600, deep: { er: [1.5, null, 'é'] } },
  metadata: { name: 'n', description: 'd', owner: 'o@example.com', source: 'https://example.com/' },
});

// What downloads are written to.
class Sink {
  begin() {
    this.chunks = [];
    return new Writable({
      write: (chunk, _, done) => {
        this.chunks.push(chunk);
        done();
      },
    });
  }
  data() {
    return Buffer.concat(this.chunks);
  }
}

const checks = {
  async life() {
    const taskId = taskcluster.slugid();
    const task = definition('js/life');
    const { status } = await queue.createTask(taskId, task);
    assert(status.state === 'pending');
    const stored = await queue.task(taskId);
    assert(JSON.stringify(stored.payload) === JSON.stringify(task.payload), JSON.stringify(stored.payload));
    const { tasks: [claim] } = await queue.claimWork('js/life', { ...worker, tasks: 2 });
    assert(claim.status.taskId === taskId && claim.runId === 0);
    const own = new taskcluster.Queue({ rootUrl, credentials: claim.credentials });
    const reclaimed = await own.reclaimTask(taskId, 0);
    const newest = new taskcluster.Queue({ rootUrl, credentials: reclaimed.credentials });
    assert((await newest.reportCompleted(taskId, 0)).status.state === 'completed');
    assert((await refused(409, newest.reportFailed(taskId, 0))).code === 'RequestConflict');
  },
  async empty() {
    assert((await queue.claimWork('js/empty', worker)).tasks.length === 0);
  },
  async temporaryCredentials() {
    for (const name of [undefined, 'js/temporary']) {
      const made = taskcluster.createTemporaryCredentials({
        ...(name ? { clientId: name } : {}),
        start: taskcluster.fromNow('-1 minute'),
        expiry: taskcluster.fromNow('1 hour'),
        scopes: ['auth:current-scopes'],
        credentials,
      });
      const auth = new taskcluster.Auth({ rootUrl, credentials: made });
      assert((await auth.currentScopes()).scopes.includes('auth:current-scopes'));
      await refused(403, new taskcluster.Queue({ rootUrl, credentials: made })
        .createTask(taskcluster.slugid(), definition('js/t')));
    }
  },
  async signedUrls() {
    const taskId = taskcluster.slugid();
    await queue.createTask(taskId, definition('js/url'));
    const answer = await fetch(queue.buildSignedUrl(queue.status, taskId));
    assert((await answer.json()).status.taskId === taskId);
  },
  async authorizedScopes() {
    const auth = new taskcluster.Auth({ rootUrl, credentials, authorizedScopes: ['auth:current-scopes'] });
    assert(!(await auth.currentScopes()).scopes.includes('*'));
  },
  async testers() {
    const tester = new taskcluster.Auth({
      rootUrl, credentials: { clientId: 'tester', accessToken: 'no-secret' },
    });
    const answer = await tester.testAuthenticate({ clientScopes: ['test:*'], requiredScopes: ['test:a'] });
    assert(answer.clientId === 'tester' && answer.scopes.join() === 'assume:anonymous,test:*');
    assert((await tester.testAuthenticateGet()).clientId === 'tester');
  },
  async objects() { // O-046
    const object = new taskcluster.Object({ rootUrl, credentials });
    for (const size of [12, 10 * 1024]) {
      const data = randomBytes(size);
      const name = `js/${taskcluster.slugid()}`;
      await taskcluster.upload({
        projectId: 'none',
        name,
        contentType: 'application/x',
        contentLength: data.length,
        expires: taskcluster.fromNowJSON('1 hour'),
        object,
        streamFactory: async () => Readable.from([data]),
      });
      const sink = new Sink();
      const contentType = await taskcluster.download({ name, object, streamFactory: async () => sink.begin() });
      assert(sink.data().equals(data) && contentType === 'application/x', contentType);
    }
  },
  async artifacts() {
    const taskId = taskcluster.slugid();
    await queue.createTask(taskId, definition('js/artifacts'));
    const { tasks: [claim] } = await queue.claimWork('js/artifacts', worker);
    const own = new taskcluster.Queue({ rootUrl, credentials: claim.credentials });
    const expires = taskcluster.fromNowJSON('2 hours');
    const made = await own.createArtifact(taskId, 0, 'private/a b', {
      storageType: 's3', contentType: 'text/x', expires,
    });
    const put = await fetch(made.putUrl, { method: 'PUT', body: 'hello', headers: { 'Content-Type': 'text/x' } });
    assert(put.ok, String(put.status));
    const sink = new Sink();
    const contentType = await taskcluster.downloadArtifact({
      taskId, name: 'private/a b', queue, streamFactory: async () => sink.begin(),
    });
    assert(sink.data().toString() === 'hello' && contentType === 'text/x', contentType);
    const fetched = await fetch(queue.buildSignedUrl(queue.getArtifact, taskId, 0, 'private/a b'));
    assert(fetched.redirected && (await fetched.text()) === 'hello');
    await own.createArtifact(taskId, 0, 'public/error', {
      storageType: 'error', reason: 'too-large-file-on-worker', message: 'too large', expires,
    });
    try {
      await taskcluster.downloadArtifact({
        taskId, name: 'public/error', queue, streamFactory: async () => sink.begin(),
      });
    } catch (error) {
      assert(error.message === 'too large' && error.reason === 'too-large-file-on-worker', error.message);
      return;
    }
    throw new Error('an error was downloaded');
  },
  async listing() {
    const auth = new taskcluster.Auth({ rootUrl, credentials });
    assert((await auth.listClients({ limit: 1 })).continuationToken);
    assert(Array.isArray(await auth.listRoles()));
    assert((await queue.ping()).alive === true);
  },
};

const results = {};
for (const [name, check] of Object.entries(checks)) {
  try {
    await check();
    results[name] = 'ok';
  } catch (error) {
    results[name] = error.stack;
  }
}
console.log(JSON.stringify(results));
