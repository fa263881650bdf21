import account from './account.json'
import common from './common.json'
import notifications from './notifications.json'
import orders from './orders.json'
import shop from './shop.json'

export default { ...common, account, notifications, orders, shop }
