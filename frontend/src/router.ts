import { createRouter, createWebHistory, type RouteLocationNormalized, type RouteRecordRaw } from 'vue-router'
import { loadAdminMessages } from './i18n'
import ShopPage from './pages/ShopPage.vue'
import { useSession } from './stores/session'
import { safeRedirectPath } from './utils/redirectPath'

declare module 'vue-router' {
  interface RouteMeta {
    /** The login or role that the page requires. A guest logs in first and is then sent back here. */
    requires?: 'user' | 'admin'
    /** The page shows the data of a one-time link, not of a user: it is not reset when the user changes. */
    survivesUserChange?: true
    /** The message key of the document's title. */
    title: string
  }
}

const admin: RouteRecordRaw = {
  path: '/admin',
  component: () => import('./pages/admin/AdminLayout.vue'),
  meta: { requires: 'admin', title: 'nav.backOffice' },
  beforeEnter: loadAdminMessages,
  children: [
    {
      path: '',
      name: 'dashboard',
      component: () => import('./pages/admin/DashboardPage.vue'),
      meta: { title: 'admin.dashboard.title' },
    },
    {
      path: 'orders',
      name: 'admin-orders',
      component: () => import('./pages/admin/OrdersPage.vue'),
      meta: { title: 'admin.orders.title' },
    },
    {
      path: 'orders/:id(\\d+)',
      name: 'admin-order',
      component: () => import('./pages/admin/OrderPage.vue'),
      meta: { title: 'admin.orders.title' },
    },
    {
      path: 'products',
      name: 'admin-products',
      component: () => import('./pages/admin/ProductsPage.vue'),
      meta: { title: 'admin.products.title' },
    },
    {
      path: 'products/new',
      name: 'admin-product-new',
      component: () => import('./pages/admin/ProductPage.vue'),
      meta: { title: 'admin.products.new' },
    },
    {
      path: 'products/:id([1-9]\\d*)',
      name: 'admin-product',
      component: () => import('./pages/admin/ProductPage.vue'),
      meta: { title: 'admin.products.edit' },
    },
    {
      path: 'notifications',
      name: 'admin-notifications',
      component: () => import('./pages/admin/NotificationsPage.vue'),
      meta: { title: 'admin.notifications.title' },
    },
    {
      path: 'parked',
      name: 'admin-parked',
      component: () => import('./pages/admin/ParkedPage.vue'),
      meta: { title: 'admin.parked.title' },
    },
    {
      path: 'users',
      name: 'admin-users',
      component: () => import('./pages/admin/UsersPage.vue'),
      meta: { title: 'admin.users.title' },
    },
  ],
}

export const router = createRouter({
  history: createWebHistory(),
  routes: [
    { path: '/', name: 'shop', component: ShopPage, meta: { title: 'nav.shop' } },
    {
      path: '/products/:id(\\d+)',
      name: 'product',
      component: () => import('./pages/ProductPage.vue'),
      meta: { title: 'nav.shop' },
    },
    { path: '/cart', name: 'cart', component: () => import('./pages/CartPage.vue'), meta: { title: 'nav.cart' } },
    {
      path: '/checkout',
      name: 'checkout',
      component: () => import('./pages/CheckoutPage.vue'),
      meta: { requires: 'user', title: 'shop.checkout.title' },
    },
    {
      path: '/orders',
      name: 'orders',
      component: () => import('./pages/OrdersPage.vue'),
      meta: { requires: 'user', title: 'nav.orders' },
    },
    {
      path: '/orders/:id(\\d+)',
      name: 'order',
      component: () => import('./pages/OrderPage.vue'),
      meta: { requires: 'user', title: 'nav.orders' },
    },
    {
      path: '/notifications',
      name: 'notifications',
      component: () => import('./pages/NotificationsPage.vue'),
      meta: { requires: 'user', title: 'nav.notifications' },
    },
    {
      path: '/account',
      name: 'account',
      component: () => import('./pages/AccountPage.vue'),
      meta: { requires: 'user', title: 'nav.account' },
    },
    { path: '/login', name: 'login', component: () => import('./pages/LoginPage.vue'), meta: { title: 'nav.logIn' } },
    {
      path: '/register',
      name: 'register',
      component: () => import('./pages/RegisterPage.vue'),
      meta: { title: 'nav.register' },
    },
    {
      path: '/forgot-password',
      name: 'forgot-password',
      component: () => import('./pages/ForgotPasswordPage.vue'),
      meta: { title: 'account.forgot.title' },
    },
    {
      path: '/reset-password',
      name: 'reset-password',
      component: () => import('./pages/ResetPasswordPage.vue'),
      meta: { survivesUserChange: true, title: 'account.reset.title' },
    },
    {
      path: '/verify-email',
      name: 'verify-email',
      component: () => import('./pages/VerifyEmailPage.vue'),
      meta: { survivesUserChange: true, title: 'account.verify.title' },
    },
    {
      path: '/auth/callback',
      name: 'sign-in-callback',
      component: () => import('./pages/SignInCallbackPage.vue'),
      meta: { survivesUserChange: true, title: 'nav.logIn' },
    },
    admin,
    {
      path: '/:path(.*)*',
      name: 'not-found',
      component: () => import('./pages/NotFoundPage.vue'),
      meta: { title: 'notFound.title' },
    },
  ],
  // Going back restores the scroll position. A change of the filters keeps it.
  scrollBehavior(to, from, saved) {
    if (saved) return saved
    // A fragment with a token is not an anchor.
    if (/^#[\w-]+$/.test(to.hash)) return { el: to.hash }
    return to.path === from.path ? {} : { top: 0 }
  },
})

/** Waits for the session, then checks what the route requires. */
export async function guard(to: RouteLocationNormalized) {
  const session = useSession()
  const isLoginPage = to.name === 'login' || to.name === 'register'
  if (!to.meta.requires && !isLoginPage) return
  await session.restore()
  if (isLoginPage) return session.user ? safeRedirectPath(to.query.next) : true
  // The user is unknown: components/SessionGate.vue shows the error instead of the page.
  if (session.failure) return
  if (!session.user) return { name: 'login', query: { next: to.fullPath } }
  // The back office is hidden from other users.
  if (to.meta.requires === 'admin' && !session.isAdmin)
    return { name: 'not-found', params: { path: to.path.slice(1).split('/') } }
}
router.beforeEach(guard)
