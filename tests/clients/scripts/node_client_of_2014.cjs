// npm taskcluster-client of January 2015, whose reference is the user's: a task's life, and a graph's, with its
// listener beside. Prints what became of each check.
const { createRequire } = require('node:module');

const taskcluster = createRequire(`${process.env.CLIENTS_NODE_DIR}/`)('taskcluster-client');
const baseUrl = `${process.env.TASKCLUSTER_ROOT_URL}/v1`;
const credentials = {
  clientId: process.env.TASKCLUSTER_CLIENT_ID,
  accessToken: process.env.TASKCLUSTER_ACCESS_TOKEN,
};
const queue = new taskcluster.Queue({ baseUrl, credentials });
const scheduler = new taskcluster.Scheduler({ baseUrl, credentials });
const worker = { workerGroup: 'my-group', workerId: 'my-worker' };
const slugid = createRequire(`${process.env.CLIENTS_NODE_DIR}/`)('slugid');

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
    assert(error.message.length > 0 && error.body.message === error.message, 'says nothing');
    return error;
  }
  throw new Error('was not refused');
};
const soon = ms => new Date(Date.now() + ms).toJSON();
const definition = (workerType, changes = {}) => ({
  provisionerId: 'prov-2014',
  workerType,
  schedulerId: 'my-scheduler',
  routes: [],
  retries: 5,
  created: new Date().toJSON(),
  deadline: soon(24 * 60 * 60 * 1000),
  scopes: [],
  payload: { n: 3600, text: 'é' },
  metadata: { name: 'n', description: 'd', owner: 'o@example.com', source: 'https://example.com/' },
  tags: { objective: 'test' },
  ...changes,
});

// A listener on exchanges, and the messages that came.
const listening = async bindings => {
  const listener = new taskcluster.Listener({ connectionString: process.env.AMQP_URL });
  bindings.forEach(binding => listener.bind(binding));
  const messages = [];
  listener.on('message', async message => {
    messages.push(message);
  });
  await listener.resume();
  const until = async (count, milliseconds = 10000) => {
    const end = Date.now() + milliseconds;
    while (messages.length < count) {
      assert(Date.now() < end, `only ${messages.map(message => message.exchange)}`);
      await new Promise(resolve => setTimeout(resolve, 10));
    }
    return messages;
  };
  return { until, close: () => listener.close() };
};

const checks = {
  // A worker with scopes of its own, and nothing but those.
  async life() {
    const taskId = slugid.v4();
    const events = new taskcluster.QueueEvents();
    const listener = await listening([
      events.taskDefined({ taskId }),
      events.taskPending({ taskId }),
      events.taskRunning({ taskId }),
      events.taskCompleted({ taskId }),
    ]);
    const task = definition('life');
    const created = await queue.createTask(taskId, task);
    assert(created.status.state === 'pending' && created.status.taskId === taskId);
    assert((await queue.createTask(taskId, task)).status.runs.length === 1);
    await refused(409, queue.createTask(taskId, { ...task, retries: 1 }));
    assert((await queue.getTask(taskId)).payload.text === 'é');
    assert((await queue.getPendingTasks('prov-2014')).tasks.some(status => status.taskId === taskId));
    const mine = new taskcluster.Queue({
      baseUrl,
      credentials,
      authorizedScopes: [
        'queue:claim-task',
        'assume:worker-type:prov-2014/life',
        'assume:worker-id:my-group/my-worker',
        'queue:report-task-completed',
        'queue:create-artifact:*',
      ],
    });
    const claim = await mine.claimWork('prov-2014', 'life', worker);
    assert(claim.status.taskId === taskId && claim.runId === 0 && !claim.credentials && !claim.task);
    assert((await mine.reclaimTask(taskId, 0)).takenUntil >= claim.takenUntil);
    // With nothing to claim there is no body.
    const nothing = await mine.claimWork('prov-2014', 'life', worker);
    assert(Object.keys(nothing ?? {}).length === 0, JSON.stringify(nothing));
    await refused(403, mine.rerunTask(taskId));
    const made = await mine.createArtifact(taskId, 0, 'public/log.txt', {
      storageType: 's3',
      expires: soon(60 * 60 * 1000),
      contentType: 'text/plain',
    });
    const put = await fetch(made.putUrl, {
      method: 'PUT',
      body: 'hello',
      headers: { 'Content-Type': 'text/plain' },
    });
    assert(put.status === 200, `PUT ${put.status}`);
    const url = mine.buildUrl(mine.getArtifact, taskId, 0, 'public/log.txt');
    assert((await (await fetch(url)).text()) === 'hello');
    const signed = queue.buildSignedUrl(queue.getLastestArtifact, taskId, 'public/log.txt', { expiration: 60 });
    assert((await (await fetch(signed)).text()) === 'hello');
    assert((await queue.listArtifacts(taskId, 0)).artifacts[0].name === 'public/log.txt');
    const done = await mine.reportCompleted(taskId, 0, { success: true });
    assert(done.status.state === 'completed' && done.status.runs[0].success === true);
    await refused(409, mine.reportCompleted(taskId, 0, { success: false }));
    assert((await queue.rerunTask(taskId)).status.runs.length === 2);
    // Repeats of createTask come as repeats on the exchanges, too.
    const messages = await listener.until(7);
    const seen = new Set(messages.map(message => message.exchange));
    assert(seen.size === 4 && [...seen].every(name => name.startsWith('queue/v1/')), [...seen].join());
    assert(messages.every(message => message.routing.taskId === taskId));
    const completed = messages.find(message => message.exchange === 'queue/v1/task-completed');
    assert(completed.payload.success === true && completed.routing.workerId === 'my-worker');
    await listener.close();
  },

  async defining() {
    const taskId = slugid.v4();
    const task = definition('defining');
    assert((await queue.defineTask(taskId, task)).status.state === 'unscheduled');
    await queue.defineTask(taskId, task);
    assert((await queue.scheduleTask(taskId)).status.state === 'pending');
    const claim = await queue.claimTask(taskId, 0, worker);
    assert(claim.status.state === 'running');
    await refused(409, queue.claimTask(taskId, 0, { ...worker, workerId: 'other' }));
    await refused(404, queue.status(slugid.v4()));
    await refused(400, queue.createTask(taskId, { nonsense: 1 }));
    const wrong = { clientId: credentials.clientId, accessToken: 'no' };
    await refused(401, new taskcluster.Queue({ baseUrl, credentials: wrong }).rerunTask(taskId));
  },

  async broker() {
    const { url } = await queue.getAMQPConnectionString();
    assert(url.startsWith('amqp'), url);
    assert((await queue.ping()).alive);
  },

  // Three tasks in a row, the first of which fails once.
  async graph() {
    const [taskGraphId, a, b, c] = [1, 2, 3, 4].map(() => slugid.v4());
    const events = new taskcluster.SchedulerEvents();
    const listener = await listening([
      events.taskGraphRunning({ taskGraphId }),
      events.taskGraphFinished({ taskGraphId }),
    ]);
    const task = () => {
      const made = definition('graph');
      delete made.schedulerId;
      return made;
    };
    const created = await scheduler.createTaskGraph(taskGraphId, {
      scopes: ['queue:define-task:prov-2014/graph'],
      tasks: [
        { taskId: c, requires: [b], reruns: 0, task: task() },
        { taskId: b, requires: [a], reruns: 0, task: task() },
        { taskId: a, requires: [], reruns: 1, task: task() },
      ],
      metadata: { name: 'g', description: 'd', owner: 'o@example.com', source: 'https://example.com/' },
      tags: {},
    });
    assert(created.status.state === 'running' && created.status.taskGraphId === taskGraphId);
    const work = async (taskId, runId, success) => {
      const claim = await queue.claimWork('prov-2014', 'graph', worker);
      assert(claim.status?.taskId === taskId && claim.runId === runId, JSON.stringify(claim));
      await queue.reportCompleted(taskId, runId, { success });
    };
    await work(a, 0, false);
    await work(a, 1, true);
    await work(b, 0, true);
    assert((await scheduler.status(taskGraphId)).status.state === 'running');
    await work(c, 0, true);
    assert((await scheduler.status(taskGraphId)).status.state === 'finished');
    const inspected = await scheduler.inspect(taskGraphId);
    const first = inspected.tasks.find(node => node.taskId === a);
    assert(first.rerunsLeft === 0 && first.reruns === 1 && first.state === 'completed' && first.satisfied);
    assert((await scheduler.info(taskGraphId)).metadata.name === 'g');
    const messages = await listener.until(2);
    assert(messages.map(message => message.exchange).join() ===
      'scheduler/v1/task-graph-running,scheduler/v1/task-graph-finished');
    assert(messages[1].payload.status.state === 'finished');
    await listener.close();
  },
};

(async () => {
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
  process.exit(0);
})();
